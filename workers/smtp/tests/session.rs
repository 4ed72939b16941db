//! Whole sessions against a scripted server: what is known about the message, and about the connection.
#![expect(clippy::unwrap_used, reason = "a helper of a test may fail it")]

use std::{
    pin::pin,
    sync::{Arc, Mutex},
};

use postrider_schemas::EmailAddress;
use postrider_smtp::{
    After, Cause, Client, Delivery, Failure, Mail, MessageState, Observer, Session, Settings, Span, Stage, Step,
    SubmitPermission,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// What the client sends, up to the end of that text, and what it hears.
type Script = Vec<(&'static str, &'static str)>;

const WELCOME: [(&str, &str); 2] =
    [("", "220 relay.example\r\n"), ("EHLO client.example\r\n", "250-relay.example\r\n250 PIPELINING\r\n")];
const ENVELOPE: &str = "MAIL FROM:<>\r\nRCPT TO:<ann@dest.example>\r\nRCPT TO:<bob@dest.example>\r\nDATA\r\n";
const MESSAGE: &str = "Subject: x\r\n\r\nx\r\n.\r\n";

/// A server that follows the welcome and then this script, and hangs up at its end.
async fn server(script: Script) -> Client {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        for (wanted, answer) in WELCOME.into_iter().chain(script) {
            let mut seen = vec![0; wanted.len()];
            if stream.read_exact(&mut seen).await.is_err() {
                return;
            }
            assert_eq!(String::from_utf8(seen).unwrap(), wanted);
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    Client::new(Settings { hello: "client.example".into(), ..Settings::new("127.0.0.1", port) }).unwrap()
}

async fn send<O: Observer>(session: &mut Session<O>, is_permitted: bool) -> (Delivery, After) {
    let users = ["ann", "bob"].map(|user| EmailAddress::parse(&format!("{user}@dest.example")).unwrap());
    let recipients = [&users[0], &users[1]];
    let mail = Mail { from: None, recipients: &recipients, message: b"Subject: x\r\n\r\nx\r\n" };
    let may_submit = pin!(std::future::ready(is_permitted));
    session.send_permitted(mail, &mut SubmitPermission::new(may_submit)).await
}

async fn sent(script: Script) -> (Delivery, After) {
    let client = server(script).await;
    send(&mut client.connect(()).await.unwrap(), true).await
}

#[tokio::test]
async fn each_refused_recipient_has_its_own_reply_and_the_others_get_the_message() {
    let go_on = "250 Ok\r\n250 Ok\r\n550 5.1.1 no bob\r\n354 Go on\r\n";
    let (delivery, after) = sent(vec![(ENVELOPE, go_on), (MESSAGE, "250 2.0.0 queued\r\n")]).await;
    let Delivery::Accepted { reply, refused } = &delivery else { panic!("{delivery:?}") };
    assert_eq!(reply.to_string(), "250 2.0.0 queued");
    assert_eq!((refused.len(), refused[0].index, refused[0].reply.code), (1, 1, 550));
    assert_eq!((delivery.state(), after), (MessageState::Accepted, After::Reusable));
}

#[tokio::test]
async fn without_an_answer_to_the_dot_a_message_is_unknown_and_before_it_certainly_not_sent() {
    let go_on = "250 Ok\r\n250 Ok\r\n250 Ok\r\n354 Go on\r\n";
    let (delivery, after) = sent(vec![(ENVELOPE, go_on), (MESSAGE, "")]).await;
    let Delivery::Unknown(Failure { stage: Stage::Body, cause: Cause::Closed }) = delivery else {
        panic!("{delivery:?}")
    };
    assert_eq!(after, After::Unusable);

    let (delivery, after) = sent(vec![(ENVELOPE, "250 Ok\r\n250 Ok\r\n")]).await;
    assert_eq!(delivery.state(), MessageState::NotSent, "{delivery:?}");
    let After::Cut(cut) = after else { panic!("{after:?}") };
    assert_eq!((cut.answered, cut.is_gone), (1, true));
}

#[tokio::test]
async fn a_refused_message_is_refused_and_its_connection_wants_a_reset() {
    let go_on = "250 Ok\r\n250 Ok\r\n250 Ok\r\n354 Go on\r\n";
    let (delivery, after) = sent(vec![(ENVELOPE, go_on), (MESSAGE, "554 5.7.1 spam\r\n")]).await;
    assert_eq!((delivery.state(), after), (MessageState::Refused, After::NeedsReset));
    let nobody = "250 Ok\r\n550 no ann\r\n550 no bob\r\n554 no recipients\r\n";
    let (delivery, after) = sent(vec![(ENVELOPE, nobody)]).await;
    let Delivery::AllRefused(refused) = &delivery else { panic!("{delivery:?}") };
    assert_eq!((refused.len(), delivery.state(), after), (2, MessageState::Refused, After::NeedsReset));
}

#[tokio::test]
async fn without_the_permission_the_message_does_not_go_out() {
    let client = server(vec![(ENVELOPE, "250 Ok\r\n250 Ok\r\n250 Ok\r\n354 Go on\r\n"), ("", "")]).await;
    let (delivery, after) = send(&mut client.connect(()).await.unwrap(), false).await;
    assert!(matches!(delivery, Delivery::Withdrawn), "{delivery:?}");
    assert_eq!((delivery.state(), after), (MessageState::NotSent, After::Unusable));
}

/// Writes down which steps begin, fail and end.
#[derive(Clone, Default)]
struct Diary(Arc<Mutex<Vec<String>>>);

struct Entry(Diary, Step);

impl Diary {
    fn write(&self, what: &str, step: Step) {
        self.0.lock().unwrap().push(format!("{what} {step:?}"));
    }
}

impl Observer for Diary {
    type Span = Entry;

    fn begin(&self, step: Step) -> Entry {
        self.write("begin", step);
        Entry(self.clone(), step)
    }
}

impl Span for Entry {
    fn failed(&self, _failure: &Failure) {
        self.0.write("fail", self.1);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.0.write("end", self.1);
    }
}

#[tokio::test]
async fn an_observer_sees_each_step_begin_fail_and_end() {
    let client = server(vec![(ENVELOPE, "421 later\r\n")]).await;
    let diary = Diary::default();
    let mut session = client.connect(diary.clone()).await.unwrap();
    let _ = send(&mut session, true).await;
    let seen = diary.0.lock().unwrap().join(", ");
    assert_eq!(seen, "begin Connect, end Connect, begin Hello, end Hello, begin Envelope, fail Envelope, end Envelope");
}
