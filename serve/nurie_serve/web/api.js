// The server: requests with the key, patience while it is busy or away, the events of a job.

const STORED_KEY = "nurie.key";
const ENDS = ["done", "failed", "cancelled"];
const RECONNECT_MS = 1000;
const LONGEST_WAIT_MS = 3000;

/** A refusal of the server (RFC 9457), or of the page in the same form. */
export class Problem extends Error {
  constructor({ code, detail, field = null, status = 0 }) {
    super(detail);
    Object.assign(this, { code, detail, field, status });
  }
}

export class Api {
  #askForKey;
  #onState;
  #asking = null;

  /**
   * @param askForKey Called with the problem; its promise ends when there is a key to try.
   * @param onState Told "ready", "lost" (no answer) or "busy" (with the problem).
   */
  constructor(askForKey, onState) {
    this.#askForKey = askForKey;
    this.#onState = onState;
  }

  get hasKey() {
    return Boolean(readKey());
  }

  /** Keep the key with this tab, or (remember) in this browser. */
  setKey(key, remember) {
    this.forgetKey();
    (remember ? localStorage : sessionStorage).setItem(STORED_KEY, key);
  }

  forgetKey() {
    sessionStorage.removeItem(STORED_KEY);
    localStorage.removeItem(STORED_KEY);
  }

  /**
   * Send a request until there is an answer. A lost connection and a busy server are waited for,
   * so what must not happen twice needs an Idempotency-Key.
   * @param whole The signal ends the waiting alone, never a request that was sent.
   */
  async request(path, { signal, whole = false, headers = {}, ...options } = {}) {
    for (let attempt = 0; ; attempt++) {
      const key = readKey();
      const sent = key ? { ...headers, Authorization: `Bearer ${key}` } : headers;
      let response;
      try {
        response = await fetch(path, { ...options, headers: sent, signal: whole ? null : signal });
      } catch (error) {
        if (error.name === "AbortError") throw error;
        this.#onState("lost");
        await pause(Math.min(LONGEST_WAIT_MS, RECONNECT_MS * 2 ** attempt), signal);
        continue;
      }
      if (response.ok) {
        this.#onState("ready");
        return response;
      }
      await this.#refused(response, key, signal);
    }
  }

  async json(path, options) {
    return (await this.request(path, options)).json();
  }

  async blob(path, options) {
    return (await this.request(path, options)).blob();
  }

  /** The events of a job to its end: {kind, data}. A stream that is cut goes on where it was. */
  async *events(job, signal) {
    let last = null;
    for (;;) {
      const headers = last ? { "Last-Event-ID": last } : {};
      const response = await this.request(`/v1/jobs/${job}/events`, { headers, signal });
      try {
        for await (const event of parseEvents(response.body)) {
          last = event.id ?? last;
          yield event;
          if (ENDS.includes(event.kind)) return;
        }
      } catch (error) {
        if (!(error instanceof TypeError)) throw error;
        this.#onState("lost");
      }
      await pause(RECONNECT_MS, signal);
    }
  }

  /** Wait for what can be waited for; throw what cannot. */
  async #refused(response, key, signal) {
    const problem = await readProblem(response);
    if (response.status === 401 || problem.code === "too_many_wrong_keys") {
      // Requests that were under way with an older key only have to be sent again.
      if (readKey() === key) await this.#ask(problem);
      return;
    }
    const wait = Number(response.headers.get("Retry-After"));
    if (!wait || problem.code === "deadline_exceeded") throw problem;
    this.#onState("busy", problem);
    await pause(wait * 1000, signal);
  }

  /** Many requests may find out at once that a key is needed: one question is enough. */
  #ask(problem) {
    this.#asking ??= this.#askForKey(problem).finally(() => (this.#asking = null));
    return this.#asking;
  }
}

export function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(new DOMException("cancelled", "AbortError"));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, milliseconds);
    if (signal?.aborted) stop();
    else signal?.addEventListener("abort", stop, { once: true });
  });
}

function readKey() {
  return sessionStorage.getItem(STORED_KEY) ?? localStorage.getItem(STORED_KEY);
}

async function readProblem(response) {
  try {
    return new Problem(await response.json());
  } catch {
    const { status } = response;
    return new Problem({ status, code: "no_answer", detail: `the server answered with ${status}` });
  }
}

async function* parseEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      text += value;
      const blocks = text.split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const fields = new Map(block.split("\n").map((line) => splitOnce(line)));
        if (!fields.has("event")) continue;
        yield {
          id: fields.get("id"),
          kind: fields.get("event"),
          data: JSON.parse(fields.get("data")),
        };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function splitOnce(line) {
  const at = line.indexOf(": ");
  return [line.slice(0, at), line.slice(at + 2)];
}
