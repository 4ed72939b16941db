"""Hands mail to a gateway by the vendors' own clients: vendor_clients.py URL KEY AWS_KEY_ID AWS_SECRET.

Every mail has a subject of its own, which the caller looks for where the mail arrives. Exit status 1 and the reason where an answer is not what a
client expects.
"""

import base64
import http.client
import http.server
import sys
import threading
import urllib.parse

import boto3
import botocore.exceptions
import django.conf
import resend
import resend.exceptions
from anymail.exceptions import AnymailError
from django.core.mail import EmailMultiAlternatives, get_connection
from postmarker.core import PostmarkClient
from postmarker.exceptions import ClientError
from python_http_client import exceptions as sendgrid_errors
from sendgrid import SendGridAPIClient
from sendgrid.helpers import mail as sg

URL, KEY, AWS_ID, AWS_SECRET = sys.argv[1:]
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


class Lossy(http.server.BaseHTTPRequestHandler):
    """Passes requests on to the gateway; loses the next answers."""

    lose = 0

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        gateway = http.client.HTTPConnection(urllib.parse.urlsplit(URL).netloc)
        gateway.putrequest("POST", self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            gateway.putheader(name, value)
        gateway.endheaders(body)
        answer = gateway.getresponse()
        content = answer.read()
        self.close_connection = True
        if Lossy.lose > 0:
            Lossy.lose -= 1
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers.get("Content-Type", ""))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def lossy():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Lossy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def aws(service, url=URL, secret=AWS_SECRET):
    return boto3.client(service, region_name="eu-west-1", endpoint_url=url, aws_access_key_id=AWS_ID, aws_secret_access_key=secret)


def with_sesv2():
    def mail(subject, to=TO):
        simple = {"Subject": {"Data": subject}, "Body": {"Text": {"Data": "Zoë"}, "Html": {"Data": "<p>Zoë</p>"}},
                  "Headers": [{"Name": "X-Order", "Value": "1"}],
                  "Attachments": [{"FileName": "a.txt", "RawContent": b"attached", "ContentType": "text/plain"}]}
        return {"FromEmailAddress": FROM, "Destination": {"ToAddresses": [to]}, "ReplyToAddresses": ["help@shop.example"],
                "Content": {"Simple": simple}, "EmailTags": [{"Name": "order", "Value": "1"}]}

    client = aws("sesv2")
    assert client.send_email(**mail("sesv2 one"))["MessageId"]
    raw = f"From: {FROM}\r\nTo: {TO}\r\nSubject: sesv2 raw\r\n\r\nx\r\n".encode()
    client.send_email(Content={"Raw": {"Data": raw}})
    template = {"TemplateContent": {"Subject": "sesv2 for {{name}}", "Text": "Dear {{name}}"}, "TemplateData": '{"name": "Ada"}'}
    client.send_email(**{**mail(""), "Content": {"Template": template}})
    error = expect(client.exceptions.MessageRejected, "a wrong address", lambda: client.send_email(**mail("x", "nobody")))
    assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 400, error.response
    client_error = botocore.exceptions.ClientError
    error = expect(client_error, "a wrong secret", lambda: aws("sesv2", secret="wrong").send_email(**mail("x")))
    assert error.response["Error"]["Code"] == "UnrecognizedClientException", error.response
    # The client repeats by itself.
    Lossy.lose = 1
    aws("sesv2", lossy()).send_email(**mail("sesv2 lost"))
    assert Lossy.lose == 0


def with_ses():
    def mail(subject, to=TO):
        message = {"Subject": {"Data": subject}, "Body": {"Text": {"Data": "Zoë"}, "Html": {"Data": "<p>Zoë</p>"}}}
        return {"Source": FROM, "Destination": {"ToAddresses": [to], "BccAddresses": ["b@customer.example"]},
                "ReplyToAddresses": ["help@shop.example"], "Message": message, "Tags": [{"Name": "order", "Value": "1"}]}

    client = aws("ses")
    assert client.send_email(**mail("ses one"))["MessageId"]
    raw = f"From: {FROM}\r\nTo: x@customer.example\r\nSubject: ses raw\r\n\r\nx\r\n".encode()
    client.send_raw_email(RawMessage={"Data": raw}, Destinations=[TO])
    expect(client.exceptions.MessageRejected, "a wrong address", lambda: client.send_email(**mail("x", "nobody")))
    client_error = botocore.exceptions.ClientError
    error = expect(client_error, "a wrong secret", lambda: aws("ses", secret="wrong").send_email(**mail("x")))
    assert error.response["Error"]["Code"] == "InvalidClientTokenId", error.response
    Lossy.lose = 1
    aws("ses", lossy()).send_email(**mail("ses lost"))
    assert Lossy.lose == 0


def with_anymail():
    params = {"region_name": "eu-west-1", "endpoint_url": URL, "aws_access_key_id": AWS_ID, "aws_secret_access_key": AWS_SECRET}
    django.conf.settings.configure(USE_TZ=True, ANYMAIL={
        "RESEND_API_KEY": KEY, "RESEND_API_URL": f"{URL}/", "POSTMARK_SERVER_TOKEN": KEY, "POSTMARK_API_URL": f"{URL}/",
        "MAILGUN_API_KEY": KEY, "MAILGUN_API_URL": f"{URL}/v3", "MAILGUN_SENDER_DOMAIN": "shop.example",
        "AMAZON_SES_CLIENT_PARAMS": params,
    })
    for name in ("resend", "postmark", "mailgun", "amazon_ses"):
        def mail(to, name=name):
            message = EmailMultiAlternatives(
                f"anymail {name}", "Zoë", FROM, [to], bcc=["b@customer.example"], reply_to=["help@shop.example"],
                headers={"X-Order": "1"}, connection=get_connection(f"anymail.backends.{name}.EmailBackend"))
            message.attach_alternative("<p>Zoë</p>", "text/html")
            message.attach("a.txt", b"attached", "text/plain")
            message.metadata = {"order": "1"}
            return message

        sent = mail(TO)
        sent.send()
        status = sent.anymail_status
        assert status.status in ({"queued"}, {"sent"}), (name, status.status)
        assert status.message_id, name
        if name != "amazon_ses":
            expect(AnymailError, f"{name}: a wrong address", lambda: mail("nobody@-.example").send())


for client in (with_resend, with_sendgrid, with_postmark, with_sesv2, with_ses, with_anymail):
    client()
    print(client.__name__)
