//! What each kind of user may do on the broker, as data. It is what keeps producers from the queues of copies: workers believe the headers there.
//!
//! RabbitMQ asks for three patterns over the names of queues and exchanges: what may be declared (`configure`), published or bound to (`write`),
//! consumed or bound from (`read`). Publishing straight to a queue goes by the default exchange, `amq.default`, which nobody here may write to.

use serde_json::{Value, json};

use crate::topology::SUBMIT_EXCHANGE;

/// A kind of user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Role {
    /// The name that the shipped definitions give its user.
    pub user: &'static str,
    /// What it may declare.
    pub configure: &'static str,
    /// What it may publish or bind to.
    pub write: &'static str,
    /// What it may consume or bind from.
    pub read: &'static str,
}

/// A service that publishes jobs.
pub const PRODUCER: Role =
    Role { user: "postrider-producer", configure: "^$", write: r"^postrider\.submit$", read: "^$" };
/// A gateway: it publishes jobs, and the events of jobs that are called back.
pub const GATEWAY: Role =
    Role { user: "postrider-gateway", configure: "^$", write: r"^postrider\.(submit|events)$", read: "^$" };
/// A worker with `queue.topology = "verify"`.
pub const WORKER: Role = Role {
    user: "postrider-worker",
    configure: "^$",
    write: r"^postrider\.(due|dead|events|delay\.[0-6])$",
    read: r"^postrider\.v1\.((jobs|due)\..+|suspect)$",
};
/// A person with `postrider dead`, `hold`, `unroutable`, `cancel`, `trace`, `status` and `events`, which has a queue of its own.
pub const TOOL: Role = Role {
    user: "postrider-tool",
    configure: r"^amq\.gen.+$",
    write: r"^(postrider\.(due|events)|amq\.gen.+)$",
    read: r"^(postrider\.v1\.(dead|hold|unroutable)|postrider\.events|amq\.gen.+)$",
};
/// Whoever runs `postrider topology apply`, and workers with `queue.topology = "apply"`.
pub const TOPOLOGY: Role = Role {
    user: "postrider-topology",
    configure: r"^postrider\..+$",
    write: r"^postrider\..+$",
    read: r"^postrider\..+$",
};

/// Every kind of user.
pub const ROLES: [Role; 5] = [PRODUCER, GATEWAY, WORKER, TOOL, TOPOLOGY];

/// The routing keys that a producer may use, as topic permissions know them.
const SUBMIT_KEYS: &str = r"^(transactional|bulk)(\.[0-9]{2,5})?$";

/// The permissions in the form that `rabbitmqctl import_definitions` and the management API read, for users that are there already.
pub fn to_definitions(vhost: &str) -> Value {
    let permissions: Vec<Value> = ROLES
        .iter()
        .map(|role| {
            json!({ "user": role.user, "vhost": vhost, "configure": role.configure, "write": role.write, "read": role.read })
        })
        .collect();
    let keys = json!({ "user": PRODUCER.user, "vhost": vhost, "exchange": SUBMIT_EXCHANGE, "write": SUBMIT_KEYS, "read": "^$" });
    json!({ "permissions": permissions, "topic_permissions": [keys] })
}
