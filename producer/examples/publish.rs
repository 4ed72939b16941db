//! Publishes one job: `cargo run -p postrider-producer --example publish -- amqp://localhost ada@customer.example`.

use postrider_producer::Publisher;
use postrider_schemas::{JobLimits, JobV1};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().unwrap_or_else(|| "embedded:postrider.db".to_owned());
    let to = arguments.next().unwrap_or_else(|| "ada@customer.example".to_owned());
    let publisher = Publisher::connect(&url).await?;
    let job = JobV1 {
        from: "The Shop <orders@shop.example>".into(),
        to: vec![to.into()],
        subject: "Your receipt".to_owned(),
        text: Some("Thank you!\n".to_owned()),
        idempotency_key: Some("order:4711/receipt".to_owned()),
        ..JobV1::default()
    }
    .parse(&JobLimits::DEFAULT)?;
    publisher.publish(&job).await?;
    publisher.close().await;
    Ok(())
}
