// The form for HARP's options. Values that the user has changed are remembered and sent; all others are the server's.

import {find} from "./dom.js";

const TYPED = ["number", "textarea"];  // not updated while the user is typing
const NEVER = "10";  // right end of the threshold's slider, which means an infinite threshold
// Ranges of `strength`, and its value after a change of perturbation.
const STRENGTHS = {
    dropout: {min: 0, max: 1, step: 0.01, start: 0.2},
    uniform: {min: 0.5, max: 20, step: 0.5, start: 5},  // NEFTune's alpha
    gaussian: {min: 0.05, max: 2, step: 0.05, start: 0.45},  // as much noise as dropout with 0.2
};
// The threshold's slider for each gate, and its value after a change of gate.
const GATES = {
    entropy: {max: NEVER, step: 0.1, start: 1},
    ratio: {max: 1, step: 0.01, start: 0.5},
};
const WORDS = ["gate", "view", "perturbation", "scope", "negative_prompt"];
const HAS_MASKS = ["perturbed", "masked"];

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

    /** The object `harp` of a request; undefined if the server has HARP off. */
    get request() {
        return this.available ? {enabled: this.enabled, ...this.changes} : undefined;
    }

    /** @param defaults `harp` of /props */
    setDefaults(defaults) {
        this.defaults = defaults ?? {enabled: false};
        find(".off-note", this.form).hidden = this.available;
        find("fieldset", this.form).disabled = !this.available;
        if (!this.available) return;
        this.form.elements.reframings.max = this.defaults.reframings;  // the server has no room for more
        this.forgetUnfit();
        this.show();
    }

    /** Changes made for another server, or by an earlier version of this page, can be what this server refuses. */
    forgetUnfit() {
        this.changes = Object.fromEntries(Object.entries(this.changes).filter(([name]) => name in this.form.elements));
        if (this.value("reframings") > this.defaults.reframings) delete this.changes.reframings;
        if (this.value("gate") === "ratio" && this.value("threshold") > 1) this.changes.threshold = this.thresholdFor("ratio");
        const perturbation = this.value("view") === "masked" ? "dropout" : this.value("perturbation");
        const strength = this.value("strength");
        const fits = perturbation === "dropout" ? strength <= STRENGTHS.dropout.max : strength > 0;
        if (!fits) this.changes.strength = this.strengthFor(perturbation);
    }

    value(name) {
        return this.changes[name] ?? this.defaults[name] ?? "";
    }

    take(input) {
        if (!input.checkValidity()) return;  // half typed
        const changes = {...this.changes, [input.name]: valueOf(input)};
        if (input.name === "perturbation") changes.strength = this.strengthFor(input.value);
        if (input.name === "gate") changes.threshold = this.thresholdFor(input.value);
        if (input.name === "view") {
            if (!HAS_MASKS.includes(input.value)) changes.reframings = 1;  // without masks all passes are the same
            if (input.value === "masked") changes.strength = Math.min(this.value("strength"), STRENGTHS.dropout.max);
            if (input.value !== "guidance") delete changes.negative_prompt;
        }
        this.update(changes);
    }

    /** The server's strength applies only to the server's perturbation. */
    strengthFor(perturbation) {
        return perturbation === this.defaults.perturbation ? this.defaults.strength : STRENGTHS[perturbation].start;
    }

    /** The server's threshold applies only to the server's gate. */
    thresholdFor(gate) {
        return gate === this.defaults.gate ? this.defaults.threshold : GATES[gate].start;
    }

    update(changes) {
        this.changes = Object.fromEntries(Object.entries(changes).filter(([name, value]) =>
            value !== (this.defaults[name] ?? "")));
        this.show();
        this.onChange(this.changes);
    }

    show() {
        const view = this.value("view");
        const kind = view === "masked" ? "dropout" : this.value("perturbation");
        Object.assign(this.form.elements.strength, rangeOf(kind, this.value("strength")));
        const {threshold, beta, reframings} = this.form.elements;
        Object.assign(threshold, {max: GATES[this.value("gate")].max, step: GATES[this.value("gate")].step});
        beta.max = Math.max(4, this.value("beta"));
        for (const label of this.form.querySelectorAll("[data-view]")) label.hidden = !label.dataset.view.split(" ").includes(view);
        if (this.defaults.reframings === 1) reframings.closest("label").hidden = true;
        find("[data-contrast]", this.form).hidden = !(this.value("beta") > 1);
        for (const input of this.form.elements) {
            if (!input.name) continue;
            const value = this.value(input.name);
            const output = find("output", input.closest("label"));
            if (output) output.value = input.name === "threshold" ? this.thresholdText(value) : String(value);
            if (input.type === "checkbox") input.checked = value;
            else if (input !== document.activeElement || !TYPED.includes(input.type)) input.value = value === "inf" ? input.max : value;
        }
    }

    thresholdText(value) {
        if (value === "inf") return "never";
        return this.value("gate") === "ratio" ? String(value) : `${value} ${value === 1 ? "bit" : "bits"}`;
    }
}

/** The slider's range, extended if the server was started with a strength beyond it. */
function rangeOf(perturbation, strength) {
    const {min, max, step} = STRENGTHS[perturbation];
    return {min, max: Math.max(max, strength), step};
}

function valueOf(input) {
    if (input.type === "checkbox") return input.checked;
    if (input.name === "threshold" && input.value === input.max) return "inf";
    const number = Number(input.value);
    const isExact = input.name !== "seed" || Number.isSafeInteger(number);  // seeds have 64 bits, numbers 53
    return WORDS.includes(input.name) || !isExact ? input.value : number;
}
