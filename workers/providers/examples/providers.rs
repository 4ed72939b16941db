//! Lists what each provider needs and carries: `cargo run -p postrider-providers --example providers`.
#![expect(clippy::print_stdout, reason = "an example talks")]

fn main() {
    for one in postrider_providers::ALL {
        println!("{} ({})", one.name, one.kind);
        for setting in one.settings {
            let need = if setting.is_needed { "needed" } else { "optional" };
            println!("  {:<28}{need:<10}{}", setting.name, setting.help);
        }
    }
}
