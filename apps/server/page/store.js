// What the page remembers between visits, under one versioned key of localStorage. A new layout needs a new version.
// And the API key and the conversation, until the tab is closed. Where a browser forbids storage the page works without a memory.

const KEY = "harp.page.v1";
const API_KEY = "harp.api-key";
const CONVERSATION = "harp.conversation.v1";
let apiKey = null;  // of this visit

export function load() {
    try {
        return JSON.parse(localStorage.getItem(KEY)) ?? {};
    } catch {
        return {};  // storage is forbidden, or its content is not ours
    }
}

/** Replaces the named parts: save({theme: "dark"}). */
export function save(parts) {
    try {
        localStorage.setItem(KEY, JSON.stringify({...load(), ...parts}));
    } catch {
        // forbidden or full
    }
}

/** The API key that was entered in this tab; null if there is none. */
export function keptKey() {
    try {
        return sessionStorage.getItem(API_KEY) ?? apiKey;
    } catch {
        return apiKey;
    }
}

export function keepKey(key) {
    apiKey = key;
    try {
        sessionStorage.setItem(API_KEY, key);
    } catch {
        // forbidden or full
    }
}

/** The conversation that this tab had before it was reloaded; null if there is none. */
export function keptConversation() {
    try {
        return JSON.parse(sessionStorage.getItem(CONVERSATION));
    } catch {
        return null;  // storage is forbidden, or its content is not ours
    }
}

/** Keeps a conversation, one too long for a browser's storage without what its tooltips list. */
export function keepConversation(conversation) {
    try {
        sessionStorage.removeItem(CONVERSATION);  // rather none than an earlier one
        if (conversation.turns.length === 0) return;
        try {
            sessionStorage.setItem(CONVERSATION, JSON.stringify(conversation));
        } catch {
            sessionStorage.setItem(CONVERSATION, JSON.stringify(conversation, withoutCandidates));
        }
    } catch {
        // forbidden, or longer than a browser keeps
    }
}

const withoutCandidates = (name, value) => (name.endsWith("top_logprobs") ? [] : value);
