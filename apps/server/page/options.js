// The form of HARP's options. What the user changed is kept and sent; all else is the server's.

import {find} from "./dom.js";

const NEVER = "10";  // right end of the threshold's slider: an infinite threshold
// Ranges of `strength`, and where a change of perturbation begins.
const STRENGTHS = {
    dropout: {min: 0, max: 1, step: 0.01, start: 0.2},
    uniform: {min: 0.5, max: 20, step: 0.5, start: 5},  // NEFTune's alpha
    gaussian: {min: 0.05, max: 2, step: 0.05, start: 0.45},  // as much noise as dropout's 0.2
};
const WORDS = ["perturbation", "scope"];

export class HarpOptions {
    /** @param changes {threshold: 2, ...} from an earlier visit; onChange is called with them after each change */
    constructor(form, changes, onChange) {
        this.form = form;
        this.changes = changes;
        this.onChange = onChange;
        this.defaults = null;  // the server's; null until known
        form.addEventListener("input", ({target}) => this.take(target));
        form.addEventListener("reset", (event) => {
            event.preventDefault();
            this.update({});
        });
        form.addEventListener("submit", (event) => event.preventDefault());
    }

    get available() {
        return this.defaults?.enabled === true;
    }

    get enabled() {
        return this.available && this.value("enabled");
    }

    /** The object `harp` of a request; undefined where the server has HARP off. */
    get request() {
        return this.available ? {enabled: this.enabled, ...this.changes} : undefined;
    }

    /** @param defaults `harp` of /props */
    setDefaults(defaults) {
        this.defaults = defaults ?? {enabled: false};
        find(".off-note", this.form).hidden = this.available;
        find("fieldset", this.form).disabled = !this.available;
        if (!this.available) return;
        const {reframings} = this.form.elements;
        reframings.max = this.defaults.reframings;  // the server has room for no more
        reframings.closest("label").hidden = this.defaults.reframings === 1;
        if (this.value("reframings") > this.defaults.reframings) delete this.changes.reframings;
        this.show();
    }

    value(name) {
        return this.changes[name] ?? this.defaults[name];
    }

    take(input) {
        if (!input.checkValidity()) return;  // half typed
        const changes = {...this.changes, [input.name]: valueOf(input)};
        if (input.name === "perturbation") changes.strength = this.strengthFor(input.value);
        this.update(changes);
    }

    /** The server's strength goes with the server's perturbation only. */
    strengthFor(perturbation) {
        return perturbation === this.defaults.perturbation ? this.defaults.strength : STRENGTHS[perturbation].start;
    }

    update(changes) {
        this.changes = Object.fromEntries(Object.entries(changes).filter(([name, value]) => value !== this.defaults[name]));
        this.show();
        this.onChange(this.changes);
    }

    show() {
        Object.assign(this.form.elements.strength, rangeOf(this.value("perturbation"), this.value("strength")));
        for (const input of this.form.elements) {
            if (!input.name) continue;
            const value = this.value(input.name);
            const output = find("output", input.closest("label"));
            if (output) output.value = input.name === "threshold" ? bits(value) : String(value);
            if (input.type === "checkbox") input.checked = value;
            else if (input !== document.activeElement || input.type !== "number") input.value = value === "inf" ? NEVER : value;
        }
    }
}

/** A server may have been started with a strength beyond the slider's range. */
function rangeOf(perturbation, strength) {
    const {min, max, step} = STRENGTHS[perturbation];
    return {min, max: Math.max(max, strength), step};
}

function valueOf(input) {
    if (input.type === "checkbox") return input.checked;
    if (input.name === "threshold" && input.value === NEVER) return "inf";
    return WORDS.includes(input.name) ? input.value : Number(input.value);
}

const bits = (threshold) => (threshold === "inf" ? "never" : `${threshold} ${threshold === 1 ? "bit" : "bits"}`);
