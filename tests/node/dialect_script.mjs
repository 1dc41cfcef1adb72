// The script of docs/conformance, played to what the client for pages keeps of an inbox. One line for each step after which
// that is not as it has to be.

import { readFileSync } from "node:fs";

import { View } from "../../static/example/notifications/view.js";

let view;
const hear = {
  joined: ({ since }) => since !== null && (view = new View()),
  content: ({ documents, older }) => view.extend({ items: documents, more: older }),
  notification: (document) => view.take([document]),
  restored: (document) => view.take([document]),
  seen: ({ ids, rev, all, upto, changed }) => {
    if (changed === undefined) all ? view.markAll(upto) : view.mark(ids, true, rev);
  },
  unseen: ({ ids, rev }) => view.mark(ids, false, rev),
  delete: ({ ids, rev }) => view.remove(ids, rev),
  sync: ({ documents, floor, reset }) => {
    if (reset) view = new View();
    view.take(documents);
    view.dropBefore(floor);
  },
};

for (const line of readFileSync(process.argv[2], "utf8").trim().split("\n")) {
  const { scenario, step, frames, state } = JSON.parse(line);
  if (step === 1) view = new View();
  for (const { name, data } of frames) hear[name]?.(data);
  const found = JSON.stringify(view.list.map(({ _id, seen }) => [_id, seen]));
  if (found !== JSON.stringify(state.inbox)) console.log(`${scenario} ${step}: ${found}`);
}
