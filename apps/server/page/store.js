// What the page remembers between visits, under one versioned key of localStorage. A new layout needs a new version.

const KEY = "harp.page.v1";

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
        // forbidden or full: the page works without a memory
    }
}
