//! What is known of workers that were lost with a message, and what the store is told so that the next one knows it.

use crate::{delivery::context::Context, policy::poison::losses_begun, queue::Delivery};

/// True where another worker may have begun with it. The queue's own mark goes with a copy; the count of losses that the copy carries does not.
pub(crate) fn may_have_been_begun(delivery: &Delivery) -> bool {
    delivery.redelivered || delivery.meta.losses > 0
}

/// With how many of its deliveries workers were lost: the queue counts those too in which it only waited. Without the store, or without a name, all
/// count.
pub(crate) async fn look_back(context: &Context, delivery: &mut Delivery) {
    if may_have_been_begun(delivery)
        && let Some(name) = name(delivery)
        && let Ok(begun) = context.store.begun(&name).await
    {
        delivery.begun = begun;
        delivery.lost = losses_begun(&delivery.meta, delivery.deliveries, begun);
    }
}

/// Tells the store that something is done with a message that was delivered before.
pub(crate) async fn begin(context: &Context, delivery: &mut Delivery) {
    if let Some(name) = name(delivery) {
        // Without the store all deliveries count.
        delivery.begun = context.store.begin(&name).await.unwrap_or(delivery.begun);
    }
}

/// Tells the store that this came to an end.
pub(crate) async fn end(context: &Context, delivery: &Delivery) {
    if delivery.begun > 0
        && let Some(name) = name(delivery)
    {
        // What stays behind makes the next copy of the message count more lost workers than there were.
        let _ = context.store.ended(&name).await;
    }
}

/// The name by which the store knows the attempts with a message.
fn name(delivery: &Delivery) -> Option<String> {
    let part = delivery.meta.part.map(|part| format!("/{part}")).unwrap_or_default();
    delivery.message_id.as_ref().map(|id| format!("{id}{part}"))
}
