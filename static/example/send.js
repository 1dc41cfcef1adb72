/** The form that sends a notification: all fields of `POST /notify`, and the same request as a command for a shell. */

import { byId, isUsable, make, setUsable } from "./dom.js";

/** Something to begin with. */
const EXAMPLES = {
  "Build": {
    type: "build", icon: "✅", title: "Build #482 passed", url: "https://example.com/builds/482",
    content: "main: 214 tests in 1 min 12 s. The release candidate is ready to deploy.",
  },
  "Comment": {
    type: "comment", icon: "💬", title: "Maya commented on “Launch plan”", url: "https://example.com/docs/launch-plan",
    content: "Looks great! Could we move the second milestone to Thursday?",
  },
  "Picture": {
    type: "photo", icon: "🏔️", title: "New picture in “Team offsite”", image: "/example/sample.svg",
    content: "Sunrise above the hut. 24 more to come.",
  },
  "Mail": {
    type: "billing", icon: "🧾", title: "Invoice 2041 is due tomorrow", url: "https://example.com/invoices/2041",
    content: "€ 480.00 to Northwind Ltd.", email_send: true, email_subject: "Reminder: invoice 2041",
    email_content: "<p>Invoice <b>2041</b> over € 480.00 is due tomorrow.</p>",
  },
};

export class SendForm {
  #form = byId("send-form");

  /** @param {{ sent: () => void }} listener */
  constructor(listener) {
    this.listener = listener;
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (isUsable("send-button")) this.#send();
    });
    this.#form.addEventListener("input", () => this.#showCommand());
    byId("copy").addEventListener("click", () => this.#copy());
    byId("presets").append(...Object.entries(EXAMPLES).map(([name, fields]) => {
      const button = make("button", { class: "chip", type: "button" }, name);
      button.addEventListener("click", () => this.#fill(fields));
      return button;
    }));
  }

  /** Offer these as recipients. @param {{ id: string, email: string }[]} users @param {string} me */
  showRecipients(users, me) {
    byId("recipients").replaceChildren(...users.map(({ id, email }) => make("label", { class: "chip" },
      make("input", { type: "checkbox", name: "user", value: id, checked: id === me, "data-email": email }), id)));
    this.#showCommand();
  }

  /** @param {Record<string, string | boolean>} fields */
  #fill(fields) {
    for (const control of this.#controls()) {
      const value = fields[control.name];
      if (control instanceof HTMLInputElement && control.type === "checkbox") control.checked = value === true;
      else if (control.name !== "apikey") control.value = typeof value === "string" ? value : "";
    }
    if (fields.email_send) byId("mail-fields").open = true;
    this.#showCommand();
  }

  /** The controls of the fields of a notification. @returns {(HTMLInputElement | HTMLTextAreaElement)[]} */
  #controls() {
    return /** @type {any[]} */ ([...this.#form.elements]).filter(({ name }) => name && name !== "user");
  }

  /** What is sent: the fields that are not empty, and `content`, which must be there. */
  #fields() {
    /** @type {Record<string, unknown>} */
    const fields = { users: this.#users(), content: "" };
    for (const control of this.#controls()) {
      if (control instanceof HTMLInputElement && control.type === "checkbox") {
        if (control.checked) fields[control.name] = true;
      } else if (control.value) fields[control.name] = control.value;
    }
    return fields;
  }

  #users() {
    const chosen = [...byId("recipients").querySelectorAll("input")].filter(({ checked }) => checked)
      .map(({ value, dataset }) => ({ id: value, email: dataset.email }));
    const others = byId("others").value.split(",").map((text) => text.trim()).filter(Boolean).map((text) => {
      const [, id, email] = /** @type {RegExpMatchArray} */ (text.match(/^(.*?)\s*(?:<(.*)>)?$/));
      return email ? { id, email } : { id };
    });
    return [...chosen, ...others];
  }

  async #send() {
    const fields = this.#fields();
    if (!this.#users().length) {
      this.#report("Choose somebody to send it to.", false);
      return;
    }
    setUsable("send-button", false);
    try {
      const answer = await fetch("/notify", {
        method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(fields),
      });
      if (answer.ok) {
        this.#report(`Stored for ${this.#users().map(({ id }) => id).join(", ")}.`, true);
        this.listener.sent();
      } else this.#report(await reasonOf(answer), false);
    } catch {
      this.#report("The server does not answer.", false);
    } finally {
      setUsable("send-button", true);
    }
  }

  /** @param {string} text @param {boolean} isGood */
  #report(text, isGood) {
    const result = byId("send-result");
    result.textContent = text;
    result.classList.toggle("error", !isGood);
  }

  #showCommand() {
    byId("curl").textContent = `curl -H 'Content-Type: application/json' \\\n  -d ${quoted(JSON.stringify(this.#fields()))} \\\n  ${location.origin}/notify`;
  }

  async #copy() {
    await navigator.clipboard.writeText(byId("curl").textContent ?? "");
    byId("copy").textContent = "Copied";
    setTimeout(() => (byId("copy").textContent = "Copy"), 1500);
  }
}

/** The server's sentence; a refused key is answered as HTML. @param {Response} answer */
async function reasonOf(answer) {
  const isProblem = answer.headers.get("Content-Type")?.startsWith("application/problem+json");
  return isProblem ? (await answer.json()).detail : answer.status === 400 ? "The API key was refused." : `Error ${answer.status}.`;
}

/** As one word of a shell. @param {string} text */
function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
