//! Reads a job document and says what is wrong with it, or who gets it:
//! `cargo run -p postrider-schemas --example read_job -- schemas/examples/receipt.json`.
#![expect(clippy::print_stdout, reason = "an example talks")]

use postrider_schemas::{JobLimits, wire};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("which file?")?;
    let job = wire::decode(&std::fs::read(path)?, None, &JobLimits::DEFAULT)?;
    println!("{} ({}): {} recipients", job.subject(), job.lane().as_str(), job.recipients().len());
    Ok(())
}
