// Hands mail to a gateway by the vendors' own clients: vendor_clients.cjs URL KEY AWS_KEY_ID AWS_SECRET.
//
// Each client sends a mail with every field that the caller compares, the same mail again under the same key, one that loses its answer and is repeated by
// the client or by us, and it is shown what it does with a refusal and a wrong key. Every mail has a subject of its own. Exit status 1 and the reason where an
// answer is not what a client expects.
"use strict";

const http = require("node:http");
const assert = require("node:assert/strict");

const [URL_, KEY, AWS_ID, AWS_SECRET] = process.argv.slice(2);
process.env.RESEND_BASE_URL = URL_;
const WRONG = "prk_wrong_key";
const FROM = "The Shop <orders@shop.example>";
const [TO, CC, BCC] = ["ada@customer.example", "b@customer.example", "c@customer.example"];
const REPLY_TO = "help@shop.example";
const ATTACHED = Buffer.from("attached");

/** Passes requests on to the gateway; loses the next answers. */
let lose = 0;
const proxy = http.createServer((request, response) => {
  const parts = [];
  request.on("data", (part) => parts.push(part));
  request.on("end", () => {
    const options = { method: request.method, headers: request.headers, path: request.url };
    const passed = http.request(URL_, options, (answer) => {
      const body = [];
      answer.on("data", (part) => body.push(part));
      answer.on("end", () => {
        if (lose > 0) {
          lose -= 1;
          response.socket.destroy();
          return;
        }
        response.writeHead(answer.statusCode, answer.headers);
        response.end(Buffer.concat(body));
      });
    });
    passed.end(Buffer.concat(parts));
  });
});

async function refused(call) {
  try {
    await call();
  } catch (error) {
    return error;
  }
  throw new Error("not refused");
}

async function resend(lossy) {
  const { Resend } = require("resend");
  const client = new Resend(KEY);
  const mail = {
    from: FROM, to: [TO], cc: CC, bcc: [BCC], replyTo: REPLY_TO, subject: "node resend one", html: "<p>Zoë</p>", text: "Zoë",
    headers: { "X-Order": "1" }, tags: [{ name: "order", value: "1" }],
    attachments: [{ filename: "a.txt", content: ATTACHED, contentType: "text/plain" }],
  };
  const key = { idempotencyKey: "node-resend/1" };
  const first = await client.emails.send(mail, key);
  assert.equal(first.error, null);
  assert.deepEqual((await client.emails.send(mail, key)).data, first.data);
  const other = await client.emails.send({ ...mail, subject: "another" }, key);
  assert.equal(other.error.name, "invalid_idempotent_request");
  const view = await client.emails.get(first.data.id);
  assert.ok(["queued", "sent"].includes(view.data.last_event), JSON.stringify(view));
  const later = (hours) => new Date(Date.now() + hours * 3600e3).toISOString();
  const scheduled = await client.emails.send({ ...mail, subject: "node never", scheduledAt: later(1) });
  // A worker may have it in hand for a moment, to put it away until its time.
  let moved;
  for (let tries = 0; tries < 100 && (!moved || moved.error); tries += 1) {
    moved = await client.emails.update({ id: scheduled.data.id, scheduledAt: later(2) });
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  assert.equal(moved.error, null);
  assert.equal((await client.emails.cancel(scheduled.data.id)).error, null);
  const batch = await client.batch.send([{ ...mail, subject: "node resend batch", attachments: undefined }]);
  assert.equal(batch.data.data.length, 1);
  assert.equal((await client.emails.send({ ...mail, to: "nobody" })).error.name, "validation_error");
  assert.equal((await new Resend(WRONG).emails.send(mail)).error.name, "invalid_api_key");
  // This client does not repeat: its user does.
  const lost = new Resend(KEY, { baseUrl: lossy });
  const again = { ...mail, subject: "node resend lost" };
  lose = 1;
  assert.ok((await lost.emails.send(again, { idempotencyKey: "node-resend/2" })).error);
  assert.equal((await lost.emails.send(again, { idempotencyKey: "node-resend/2" })).error, null);
}

async function sendgrid(lossy) {
  const client = require("@sendgrid/mail");
  client.setApiKey("SG." + KEY);
  client.client.setDefaultRequest("baseUrl", URL_);
  const mail = {
    from: { email: "orders@shop.example", name: "The Shop" }, to: TO, cc: CC, bcc: BCC, replyTo: REPLY_TO,
    subject: "node sendgrid one", text: "Zoë", html: "<p>Zoë</p>", headers: { "X-Order": "1" }, categories: ["receipt"],
    customArgs: { idempotency_key: "node-sendgrid/1" },
    attachments: [{ content: ATTACHED.toString("base64"), filename: "a.txt", type: "text/plain", disposition: "attachment" }],
  };
  const [first] = await client.send(mail);
  assert.equal(first.statusCode, 202);
  const [second] = await client.send(mail);
  assert.equal(first.headers["x-message-id"], second.headers["x-message-id"]);
  const error = await refused(() => client.send({ ...mail, to: "nobody@-.example", customArgs: {} }));
  assert.equal(error.code, 400);
  assert.ok(error.response.body.errors[0].field, JSON.stringify(error.response.body));
  client.client.setDefaultRequest("baseUrl", lossy);
  const again = { ...mail, subject: "node sendgrid lost", customArgs: { idempotency_key: "node-sendgrid/2" } };
  lose = 1;
  await refused(() => client.send(again));
  await client.send(again);
  client.setApiKey("SG." + WRONG);
  client.client.setDefaultRequest("baseUrl", URL_);
  assert.equal((await refused(() => client.send(mail))).code, 401);
}

async function postmark() {
  const { ServerClient } = require("postmark");
  const options = { requestHost: new URL(URL_).host, useHttps: false };
  const client = new ServerClient(KEY, options);
  const mail = {
    From: FROM, To: TO, Cc: CC, Bcc: BCC, ReplyTo: REPLY_TO, Subject: "node postmark one", TextBody: "Zoë", HtmlBody: "<p>Zoë</p>",
    Headers: [{ Name: "X-Order", Value: "1" }], Tag: "receipt", Metadata: { order: "1" },
    Attachments: [{ Name: "a.txt", Content: ATTACHED.toString("base64"), ContentType: "text/plain", ContentID: null }],
  };
  const answer = await client.sendEmail(mail);
  assert.equal(answer.ErrorCode, 0);
  const batch = await client.sendEmailBatch([{ ...mail, Subject: "node postmark batch" }, { ...mail, To: "nobody" }]);
  assert.deepEqual(batch.map((one) => one.ErrorCode), [0, 300]);
  const error = await refused(() => client.sendEmail({ ...mail, To: "nobody" }));
  assert.deepEqual([error.statusCode, error.code], [422, 300]);
  assert.equal((await refused(() => new ServerClient(WRONG, options).sendEmail(mail))).code, 10);
}

async function mailgun(lossy) {
  const Mailgun = require("mailgun.js").default || require("mailgun.js");
  const client = (key, url) => new Mailgun(require("form-data")).client({ username: "api", key, url });
  const mail = {
    from: FROM, to: [TO], cc: CC, bcc: BCC, subject: "node mailgun one", text: "Zoë", html: "<p>Zoë</p>", "h:Reply-To": REPLY_TO,
    "h:X-Order": "1", "o:tag": ["receipt"], "v:order": "1", "v:idempotency_key": "node-mailgun/1",
    attachment: [{ data: ATTACHED, filename: "a.txt" }],
  };
  const first = await client(KEY, URL_).messages.create("shop.example", mail);
  assert.match(first.message, /^Queued/);
  assert.equal((await client(KEY, URL_).messages.create("shop.example", mail)).id, first.id);
  await client(KEY, URL_).messages.create("shop.example", {
    from: FROM, to: ["d@customer.example", "e@customer.example"], subject: "node mailgun for %recipient.name%", text: "x",
    "recipient-variables": JSON.stringify({ "d@customer.example": { name: "D" }, "e@customer.example": { name: "E" } }),
  });
  const mime = "From: orders@shop.example\r\nTo: " + TO + "\r\nSubject: node mailgun mime\r\n\r\nx\r\n";
  await client(KEY, URL_).messages.create("shop.example", { to: TO, message: Buffer.from(mime) });
  const error = await refused(() => client(KEY, URL_).messages.create("shop.example", { ...mail, to: "nobody", "v:idempotency_key": "x" }));
  assert.equal(error.status, 400);
  assert.equal((await refused(() => client(WRONG, URL_).messages.create("shop.example", mail))).status, 401);
  const again = { ...mail, subject: "node mailgun lost", "v:idempotency_key": "node-mailgun/2" };
  lose = 1;
  await refused(() => client(KEY, lossy).messages.create("shop.example", again));
  await client(KEY, lossy).messages.create("shop.example", again);
}

function aws(Client, endpoint, secret = AWS_SECRET) {
  return new Client({ region: "eu-west-1", endpoint, credentials: { accessKeyId: AWS_ID, secretAccessKey: secret } });
}

async function sesv2(lossy) {
  const { SESv2Client, SendEmailCommand, SendBulkEmailCommand } = require("@aws-sdk/client-sesv2");
  const mail = (subject) => ({
    FromEmailAddress: FROM, Destination: { ToAddresses: [TO], CcAddresses: [CC], BccAddresses: [BCC] }, ReplyToAddresses: [REPLY_TO],
    Content: {
      Simple: {
        Subject: { Data: subject, Charset: "UTF-8" }, Body: { Text: { Data: "Zoë" }, Html: { Data: "<p>Zoë</p>" } },
        Headers: [{ Name: "X-Order", Value: "1" }],
        Attachments: [{ FileName: "a.txt", RawContent: ATTACHED, ContentType: "text/plain", ContentDisposition: "ATTACHMENT" }],
      },
    },
    EmailTags: [{ Name: "order", Value: "1" }],
  });
  const client = aws(SESv2Client, URL_);
  assert.ok((await client.send(new SendEmailCommand(mail("node sesv2 one")))).MessageId);
  const raw = Buffer.from("From: orders@shop.example\r\nTo: " + TO + "\r\nSubject: node sesv2 raw\r\n\r\nx\r\n");
  await client.send(new SendEmailCommand({ Content: { Raw: { Data: raw } } }));
  const entry = (to, name) => ({
    Destination: { ToAddresses: [to] },
    ReplacementEmailContent: { ReplacementTemplate: { ReplacementTemplateData: JSON.stringify({ name }) } },
  });
  const bulk = await client.send(new SendBulkEmailCommand({
    FromEmailAddress: FROM,
    DefaultContent: { Template: { TemplateContent: { Subject: "node sesv2 for {{name}}", Text: "Dear {{name}}" }, TemplateData: "{}" } },
    BulkEmailEntries: [entry("d@customer.example", "D"), entry("nobody", "x"), entry("e@customer.example", "E")],
  }));
  assert.deepEqual(bulk.BulkEmailEntryResults.map((one) => one.Status), ["SUCCESS", "INVALID_PARAMETER", "SUCCESS"]);
  const wrong = { ...mail("x"), Destination: { ToAddresses: ["nobody"] } };
  assert.equal((await refused(() => client.send(new SendEmailCommand(wrong)))).name, "MessageRejected");
  const stranger = aws(SESv2Client, URL_, "wrong");
  assert.equal((await refused(() => stranger.send(new SendEmailCommand(mail("x"))))).name, "UnrecognizedClientException");
  // The client repeats by itself.
  lose = 1;
  await aws(SESv2Client, lossy).send(new SendEmailCommand(mail("node sesv2 lost")));
  assert.equal(lose, 0);
}

async function ses(lossy) {
  const { SESClient, SendEmailCommand, SendRawEmailCommand } = require("@aws-sdk/client-ses");
  const mail = (subject) => ({
    Source: FROM, Destination: { ToAddresses: [TO], CcAddresses: [CC], BccAddresses: [BCC] }, ReplyToAddresses: [REPLY_TO],
    Message: { Subject: { Data: subject }, Body: { Text: { Data: "Zoë" }, Html: { Data: "<p>Zoë</p>" } } },
    Tags: [{ Name: "order", Value: "1" }],
  });
  const client = aws(SESClient, URL_);
  assert.ok((await client.send(new SendEmailCommand(mail("node ses one")))).MessageId);
  const raw = Buffer.from("From: orders@shop.example\r\nTo: x@customer.example\r\nSubject: node ses raw\r\n\r\nx\r\n");
  await client.send(new SendRawEmailCommand({ RawMessage: { Data: raw }, Destinations: [TO] }));
  const wrong = { ...mail("x"), Destination: { ToAddresses: ["nobody"] } };
  assert.equal((await refused(() => client.send(new SendEmailCommand(wrong)))).name, "MessageRejected");
  const stranger = aws(SESClient, URL_, "wrong");
  assert.equal((await refused(() => stranger.send(new SendEmailCommand(mail("x"))))).name, "InvalidClientTokenId");
  lose = 1;
  await aws(SESClient, lossy).send(new SendEmailCommand(mail("node ses lost")));
  assert.equal(lose, 0);
}

async function nodemailer() {
  const { createTransport } = require("nodemailer");
  const { SESv2Client, SendEmailCommand } = require("@aws-sdk/client-sesv2");
  const transport = createTransport({ SES: { sesClient: aws(SESv2Client, URL_), SendEmailCommand } });
  assert.equal(await transport.verify(), true);
  await transport.sendMail({
    from: FROM, to: TO, cc: CC, bcc: BCC, replyTo: REPLY_TO, subject: "node nodemailer one", text: "Zoë", html: "<p>Zoë</p>",
    headers: { "X-Order": "1" }, attachments: [{ filename: "a.txt", content: ATTACHED, contentType: "text/plain" }],
  });
}

proxy.listen(0, "127.0.0.1", async () => {
  const lossy = `http://127.0.0.1:${proxy.address().port}`;
  try {
    for (const client of [resend, sendgrid, postmark, mailgun, sesv2, ses, nodemailer]) {
      await client(lossy);
      console.log(client.name);
    }
    process.exit(0);
  } catch (error) {
    console.error(error);
    process.exit(1);
  }
});
