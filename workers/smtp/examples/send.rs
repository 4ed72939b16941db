//! Sends a message to one recipient: `cargo run -p postrider-smtp --example send -- localhost 25 ada@example.com`.
#![expect(clippy::print_stdout, reason = "an example talks")]

use std::time::Duration;

use postrider_schemas::EmailAddress;
use postrider_smtp::{Client, Delivery, Mail, Settings};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(host), Some(port), Some(to)) = (arguments.next(), arguments.next(), arguments.next()) else {
        return Err("usage: send HOST PORT RECIPIENT".into());
    };
    let to = EmailAddress::parse(&to)?;
    let message = format!("To: {}@{}\r\nSubject: Hello\r\n\r\nHello\r\n", to.local(), to.domain());

    let client = Client::new(Settings::new(host, port.parse()?))?;
    let mut session = client.connect(()).await?;
    println!("the server offers {:?}", session.capabilities());

    let mail = Mail { from: None, recipients: &[&to], message: message.as_bytes() };
    let (delivery, _after) = session.send(mail).await;
    match &delivery {
        Delivery::Accepted { reply, .. } => println!("taken: {reply}"),
        Delivery::AllRefused(refused) => {
            for one in refused {
                println!("recipient {} was refused: {}", one.index, one.reply);
            }
        }
        Delivery::NotTaken(failure) => println!("not taken: {failure}"),
        Delivery::Unknown(failure) => println!("perhaps taken: {failure}"),
        Delivery::Withdrawn => println!("not sent"),
    }
    session.quit(Duration::from_secs(2)).await;
    Ok(())
}
