"""Hands mail to a gateway by the vendors' own clients: vendor_clients.py URL KEY.

Every mail has a subject of its own, which the caller looks for where the mail arrives. Exit status 1 and the reason where an answer is not what a
client expects.
"""

import base64
import sys

import resend
import resend.exceptions
from postmarker.core import PostmarkClient
from postmarker.exceptions import ClientError
from python_http_client import exceptions as sendgrid_errors
from sendgrid import SendGridAPIClient
from sendgrid.helpers import mail as sg

URL, KEY = sys.argv[1:]
WRONG = "prk_wrong_key"
FROM, TO = "The Shop <orders@shop.example>", "ada@customer.example"


def expect(error, what, call):
    try:
        answer = call()
    except error as found:
        return found
    raise AssertionError(f"{what}: {answer}")


def with_resend():
    resend.api_url, resend.api_key = URL, KEY
    mail = {
        "from": FROM, "to": [TO], "cc": "b@customer.example", "bcc": ["c@customer.example"], "reply_to": "help@shop.example",
        "subject": "resend one", "html": "<p>Zoë</p>", "text": "Zoë", "headers": {"X-Order": "1"},
        "tags": [{"name": "order", "value": "1"}],
        "attachments": [{"filename": "a.txt", "content": list(b"attached"), "content_type": "text/plain"}],
    }
    first = resend.Emails.send(mail, {"idempotency_key": "resend/1"})
    assert first["id"] == resend.Emails.send(mail, {"idempotency_key": "resend/1"})["id"], "a repeat has another id"
    batch = resend.Batch.send([{**mail, "subject": f"resend batch {n}", "attachments": []} for n in (1, 2)])
    assert len(batch["data"]) == 2, batch
    error = expect(resend.exceptions.ResendError, "a wrong address", lambda: resend.Emails.send({**mail, "to": "nobody"}))
    assert (error.code, error.error_type) == (422, "validation_error"), error.__dict__
    error = expect(resend.exceptions.ResendError, "a hosted template", lambda: resend.Emails.send({**mail, "topic_id": "x"}))
    assert "topic_id" in error.message, error.message
    resend.api_key = WRONG
    error = expect(resend.exceptions.ResendError, "a wrong key", lambda: resend.Emails.send(mail))
    assert (error.code, error.error_type) == (403, "invalid_api_key"), error.__dict__


def with_sendgrid():
    client = SendGridAPIClient(KEY, host=URL)

    def mail(subject, to=TO):
        return sg.Mail(from_email=("orders@shop.example", "The Shop"), to_emails=to, subject=subject,
                       plain_text_content="Zoë", html_content="<p>Zoë</p>")

    full = mail("sendgrid one")
    full.reply_to = sg.ReplyTo("help@shop.example")
    full.attachment = sg.Attachment(sg.FileContent(base64.b64encode(b"attached").decode()), sg.FileName("a.txt"),
                                    sg.FileType("text/plain"), sg.Disposition("attachment"))
    full.category = [sg.Category("receipt")]
    full.custom_arg = sg.CustomArg("idempotency_key", "sendgrid/1")
    full.header = sg.Header("X-Order", "1")
    first, second = client.send(full), client.send(full)
    assert first.status_code == 202 and first.body == b"", first.body
    assert first.headers["X-Message-Id"] == second.headers["X-Message-Id"], "a repeat has another id"
    many = [sg.To("d@customer.example", substitutions={"-n-": "1"}), sg.To("e@customer.example", substitutions={"-n-": "2"})]
    several = sg.Mail(from_email="orders@shop.example", subject="sendgrid part -n-", plain_text_content="x", to_emails=many, is_multiple=True)
    assert client.send(several).status_code == 202
    error = expect(sendgrid_errors.BadRequestsError, "a wrong address", lambda: client.send(mail("x", "nobody@-.example")))
    assert error.to_dict["errors"][0]["field"], error.body
    expect(sendgrid_errors.UnauthorizedError, "a wrong key", lambda: SendGridAPIClient(WRONG, host=URL).send(mail("x")))


def with_postmark():
    client = PostmarkClient(server_token=KEY, root_api_url=URL)
    mail = {"From": FROM, "To": TO, "Subject": "postmark one", "HtmlBody": "<p>Zoë</p>", "TextBody": "Zoë", "Tag": "receipt",
            "ReplyTo": "help@shop.example", "Metadata": {"order": "1"}, "Headers": {"X-Order": "1"}}
    answer = client.emails.send(**mail)
    assert answer["ErrorCode"] == 0 and answer["Message"] == "OK" and answer["MessageID"], answer
    answers = client.emails.send_batch({**mail, "Subject": "postmark batch"}, {**mail, "To": "nobody"})
    assert [answer["ErrorCode"] for answer in answers] == [0, 300], answers
    expect(ClientError, "a wrong address", lambda: client.emails.send(**{**mail, "To": "nobody"}))
    wrong = PostmarkClient(server_token=WRONG, root_api_url=URL)
    error = expect(ClientError, "a wrong key", lambda: wrong.emails.send(**mail))
    assert error.error_code == 10, error


for client in (with_resend, with_sendgrid, with_postmark):
    client()
    print(client.__name__)
