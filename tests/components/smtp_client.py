"""Hands messages to a gateway by Python's own SMTP client: smtp_client.py PORT TLS_PORT KEY CA. Fails where an answer is not what a client expects."""

import smtplib
import socket
import ssl
import sys
from email.message import EmailMessage

PORT, TLS_PORT, KEY, CA = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
FROM, SENDER, HIDDEN = "orders@shop.example", "bounces@shop.example", "hidden@customer.example"
TLS = ssl.create_default_context(cafile=CA)


def connected(key=KEY):
    client = smtplib.SMTP("localhost", PORT, timeout=20)
    client.starttls(context=TLS)
    client.ehlo()
    client.login("anybody", key)
    return client


def message(subject, **headers):
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = f"The Shop <{FROM}>", "Ada <ada@customer.example>", subject
    for name, value in headers.items():
        mail[name.replace("_", "-")] = value
    mail.set_content("Zoë\n.\n..dots\n")
    mail.add_attachment(b"attached", maintype="text", subtype="plain", filename="a.txt")
    return mail


def octets(mail):
    return mail.as_bytes(policy=mail.policy.clone(linesep="\r\n"))


def envelope(client, to):
    for code, text in [client.mail(SENDER)] + [client.rcpt(one) for one in to]:
        assert code == 250, text


def send(client, mail, to=(HIDDEN,)):
    envelope(client, to)
    code, text = client.data(octets(mail))
    return code, text.decode()


client = connected()
offers = client.esmtp_features
assert {"pipelining", "8bitmime", "smtputf8", "chunking", "size", "auth"} <= offers.keys(), offers
assert "starttls" not in offers, offers
# The envelope decides: a recipient that no header names gets it, one that a header names does not.
code, text = send(client, message("smtp one", X_Postrider_Tag="receipt"))
assert code == 250 and text.startswith("2.0.0 Queued as "), text
for mail in [message("smtp keyed", X_Idempotency_Key="smtp/1"), message("smtp derived", Message_ID="<1@shop.example>")]:
    ids = {send(client, mail)[1] for _ in range(2)}
    assert len(ids) == 1, ids
spoofed = message("smtp spoofed")
spoofed.replace_header("From", "ceo@bank.example")
code, text = send(client, spoofed)
assert code == 550 and text.startswith("5.7.1"), (code, text)
client.quit()

# Chunks, over TLS from the first byte.
client = smtplib.SMTP_SSL("localhost", TLS_PORT, timeout=20, context=TLS)
client.login("anybody", KEY)
envelope(client, [HIDDEN])
data = octets(message("smtp chunks"))
for part, last in [(data[:100], ""), (data[100:], " LAST")]:
    client.send(f"BDAT {len(part)}{last}\r\n".encode() + part)
    code, text = client.getreply()
    assert code == 250, text
client.quit()

try:
    connected("prk_wrong_key")
    raise AssertionError("a wrong key was taken")
except smtplib.SMTPAuthenticationError as error:
    assert error.smtp_code == 535, error

# In the clear no key is asked for.
plain = smtplib.SMTP("localhost", PORT, timeout=20)
plain.ehlo()
assert not plain.has_extn("auth"), plain.esmtp_features
plain.quit()


def begun():
    raw = socket.create_connection(("localhost", PORT), timeout=20)
    stream = raw.makefile("rb")
    stream.readline()
    raw.sendall(b"EHLO x\r\n")
    while not stream.readline().startswith(b"250 "):
        pass
    return raw, stream


# Commands behind STARTTLS that were sent in the clear are not obeyed.
raw, stream = begun()
raw.sendall(b"STARTTLS\r\nMAIL FROM:<a@b.example>\r\n")
assert stream.readline().startswith(b"501 "), "a command was smuggled through STARTTLS"
assert stream.readline() == b"", "the connection stands"

# Connections that say nothing leave room for one that speaks.
silent = [socket.create_connection(("localhost", PORT), timeout=20) for _ in range(200)]
connected().quit()
for one in silent:
    one.close()
