"""A relay that does what the recipient's name says, with TLS and AUTH, and stores what it received.

usage: aio.py PORT FOLDER none|starttls|implicit [CERTIFICATE KEY]

At RCPT: perm... 550, grey... 451 always, once... 451 the first time, 421... 421 and the connection is closed,
slow... 2 s late, silent... no answer for an hour.
After the dot (all are stored, but for reject and busy): lost... the connection is aborted without an answer,
late... 3 s late, mute... no answer for an hour, reject... 554, busy... 451.
AUTH PLAIN and LOGIN with relayuser / s3cret, XOAUTH2 with relayuser and the token t0ken.
"""
import asyncio
import base64
import os
import ssl
import sys
import time

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

USER, PASSWORD, TOKEN = b"relayuser", b"s3cret", b"t0ken"


class Script:
    def __init__(self, folder):
        self.folder = folder
        self.count = 0
        self.seen = set()

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("slow"):
            await asyncio.sleep(2)
        if address.startswith("silent"):
            await asyncio.sleep(3600)
        if address.startswith("perm"):
            return "550 5.1.1 no such user"
        if address.startswith("grey"):
            return "451 4.7.1 greylisted"
        if address.startswith("once") and address not in self.seen:
            self.seen.add(address)
            return "451 4.7.1 greylisted, try again"
        if address.startswith("421"):
            await server.push("421 4.3.2 shutting down")
            server.transport.close()
            return "421 4.3.2 shutting down"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(self, server, session, envelope):
        def any_is(word):
            return any(address.startswith(word) for address in envelope.rcpt_tos)

        if any_is("reject"):
            return "554 5.6.0 not this message"
        if any_is("busy"):
            return "451 4.3.0 busy"
        self.store(envelope)
        if any_is("lost"):
            server.transport.abort()
            return "250 2.0.0 never sent"
        if any_is("late"):
            await asyncio.sleep(3)
        if any_is("mute"):
            await asyncio.sleep(3600)
        return "250 2.0.0 queued as %d" % self.count

    def store(self, envelope):
        """The form of smtp-sink, under its final name only when it is whole."""
        self.count += 1
        lines = ["X-Mail-Args: <%s> %s" % (envelope.mail_from, " ".join(envelope.mail_options))]
        lines += ["X-Rcpt-Args: <%s>" % address for address in envelope.rcpt_tos]
        lines += ["Received: by aiosmtpd", ""]
        content = envelope.original_content.replace(b"\r\n", b"\n")
        partial = os.path.join(self.folder, "partial")
        with open(partial, "wb") as file:
            file.write("\n".join(lines).encode("utf-8", "surrogateescape") + content + b"\n")
        os.rename(partial, os.path.join(self.folder, "message.%06d" % self.count))

    async def auth_XOAUTH2(self, server, args):
        token = b"user=%s\x01auth=Bearer %s\x01\x01" % (USER, TOKEN)
        given = base64.b64decode(args[1]) if len(args) > 1 else b""
        # Not handled: who is refused still waits for an answer.
        return AuthResult(success=given == token, handled=given == token)


def authenticate(server, session, envelope, mechanism, data):
    good = isinstance(data, LoginPassword) and (data.login, data.password) == (USER, PASSWORD)
    return AuthResult(success=good)


def main():
    port, folder, tls = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    options = dict(hostname="127.0.0.1", port=port, authenticator=authenticate, data_size_limit=32 << 20, ident="aio")
    if tls != "none":
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(sys.argv[4], sys.argv[5])
        if tls == "starttls":
            options.update(tls_context=context, require_starttls=True, auth_required=True)
        else:
            # Implicit TLS is invisible to aiosmtpd, which would refuse AUTH on a session that looks plain.
            options.update(ssl_context=context, auth_required=True, auth_require_tls=False)
    Controller(Script(folder), enable_SMTPUTF8=True, **options).start()
    while True:
        time.sleep(3600)


main()
