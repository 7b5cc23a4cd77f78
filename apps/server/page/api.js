// Requests to the page's server: the API key, errors to be shown, and answers as a stream of chunks.
// URLs are relative, because the server may run under --api-prefix.

import {find} from "./dom.js";
import {keepKey, keptKey} from "./store.js";

const dialog = find("#key-dialog");
let asked = null;  // the dialog's promise while it is open, so that two refused columns ask only once

/** A failure to be shown: `title` is our text, `detail` the server's, `type` the server's name for it. */
export class RequestError extends Error {
    constructor(title, detail = "", type = "") {
        super(title);
        this.title = title;
        this.detail = detail;
        this.type = type;
    }
}

/** @param model for a router: which of its models; it is loaded if necessary */
export async function props(model) {
    return (await request(model ? `props?model=${encodeURIComponent(model)}` : "props", {})).json();
}

/** The names of a router's models. */
export async function models() {
    return (await (await request("v1/models", {})).json()).data.map(({id}) => id);
}

/** The chunks of a chat completion as they come. Throws a RequestError, or an AbortError if `signal` was raised. */
export async function* chatChunks(body, signal) {
    const response = await request("v1/chat/completions", {
        method: "POST",
        headers: {"Content-Type": "application/json"},
        body: JSON.stringify(body),
        signal,
    });
    for await (const data of eventData(response.body)) {
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw serverError(chunk.error);
        yield chunk;
    }
    throw new RequestError("The server ended the answer early.");
}

async function request(path, init) {
    for (;;) {
        const key = keptKey();
        const response = await reach(path, key ? {...init, headers: {...init.headers, Authorization: `Bearer ${asBytes(key)}`}} : init);
        if (response.ok) return response;
        const error = await refusal(response);
        if (response.status !== 401 || !(await askForKey(key !== null))) throw error;
    }
}

/** A header takes characters up to U+00FF, one for each byte. Others would be refused by the browser, as if there were no server. */
function asBytes(text) {
    return String.fromCharCode(...new TextEncoder().encode(text));
}

async function reach(path, init) {
    try {
        return await fetch(path, init);
    } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new RequestError("The server cannot be reached.", "Is it still running?");
    }
}

async function refusal(response) {
    const body = await response.json().catch(() => ({}));
    return serverError(body.error ?? {code: response.status, message: response.statusText});
}

function serverError({code, message, type}) {
    const titles = {
        401: "The server asks for an API key.",
        503: "The server is not available.",
    };
    const title = type === "exceed_context_size_error" ? "The conversation no longer fits into the context." :
        titles[code] ?? (code >= 500 ? `The server failed (${code}).` : `The server refused the request (${code}).`);
    return new RequestError(title, message, type);
}

/** Payloads of server-sent events. An event ends with an empty line; ours have a single `data:` line. */
async function* eventData(stream) {
    const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
    let pending = "";
    try {
        for (;;) {
            const {done, value} = await reader.read();
            if (done) return;
            const events = (pending + value).split("\n\n");
            pending = events.pop();
            for (const event of events) {
                if (event.startsWith("data: ")) yield event.slice("data: ".length);
            }
        }
    } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new RequestError("The connection to the server was lost.", "Is it still running?");
    } finally {
        reader.cancel().catch(() => {});  // if the reader stops early, the server stops too
    }
}

/** Opens the dialog; true once a key was entered, false if the user gave up. */
function askForKey(refused) {
    asked ??= new Promise((resolve) => {
        const form = find("form", dialog);
        find(".error", dialog).hidden = !refused;
        form.reset();
        form.onsubmit = () => keepKey(form.elements.key.value.trim());
        form.elements.cancel.onclick = () => dialog.close();
        dialog.returnValue = "";
        dialog.onclose = () => {
            asked = null;
            resolve(dialog.returnValue === "use");
        };
        dialog.showModal();
    });
    return asked;
}
