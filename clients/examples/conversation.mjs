// A conversation that the server keeps: node conversation.mjs http://127.0.0.1:23333
import { Lmserve } from "../javascript/lmserve.js";

const client = new Lmserve({ url: process.argv[2] });

async function show(answer) {
  for await (const piece of answer) process.stdout.write(piece);
  process.stdout.write("\n");
}

const session = await client.sessions.create({ title: "Capitals" });
const first = await client.respond({ input: "What is the capital of France?", session });
await show(first);
const second = await client.respond({ input: "And of Italy?", session, max_output_tokens: 32 });
await show(second);
console.log(`${second.reusedTokens} tokens were not run again`);
for (const message of await client.sessions.messages(session)) {
  console.log(`${message.id} ${message.role}: ${message.content}`);
}
client.close();
