// The tooltip of a token: entropy, whether the model hesitated, and the candidates it chose from.

import {decode} from "./answer.js";
import {element, find} from "./dom.js";

const GAP = 6;  // pixels between token, tooltip and edges of the window
const tooltip = find("#tooltip");
let owner = null;  // the token that it belongs to
let hiding = 0;

export function show(token, piece) {
    keep();
    owner?.removeAttribute("aria-describedby");
    owner = token;
    owner.setAttribute("aria-describedby", tooltip.id);
    tooltip.replaceChildren(...content(piece));
    tooltip.hidden = false;
    place(token);
}

export function hide() {
    keep();
    owner?.removeAttribute("aria-describedby");
    owner = null;
    tooltip.hidden = true;
}

/** Keeps the tooltip at its token when the text scrolls; `view` is the element that scrolls. */
export function follow(view) {
    if (owner === null) return;
    const {top, bottom} = owner.getBoundingClientRect();
    const visible = view.getBoundingClientRect();
    if (bottom < visible.top || top > visible.bottom) hide();
    else place(owner);
}

export const isOpen = () => owner !== null;

/** Stays open for a moment, so that a pointer can cross the gap between token and tooltip. */
export function hideSoon() {
    keep();
    hiding = setTimeout(hide, 150);
}

export function keep() {
    clearTimeout(hiding);
}

function place(token) {
    // A wrapped token has a box on each line, the first often only its space. The widest box is the one that is read.
    const anchor = [...token.getClientRects()].reduce((most, box) => (box.width > most.width ? box : most));
    const {width, height} = tooltip.getBoundingClientRect();
    const below = anchor.bottom + GAP;
    const above = anchor.top - GAP - height;
    const left = Math.min(anchor.left, document.documentElement.clientWidth - width - GAP);
    const top = above >= GAP ? above : below;  // above if possible, since a finger and new text are below
    tooltip.style.left = `${Math.max(GAP, left)}px`;
    tooltip.style.top = `${Math.max(GAP, Math.min(top, window.innerHeight - height - GAP))}px`;
}

function content(piece) {
    const {token} = piece;
    if (token === null) return [element("p", {}, "The server sent this text without its tokens.")];
    const verdict = !piece.hesitated ? "no hesitation" :
        token.vanilla_top_logprobs ? "hesitated: second pass mixed in" : "hesitated";
    const facts = piece.entropy === undefined ? [] : [
        element("p", {class: "facts"}, element("strong", {}, `${piece.entropy.toFixed(2)} bits`), ` of entropy, ${verdict}`),
    ];
    return [element("p", {class: "name"}, nameOf(token)), ...facts, table(token)];
}

function table(token) {
    const mixed = Boolean(token.vanilla_top_logprobs);
    const heads = mixed ? ["candidate", "vanilla", "mixed"] : ["candidate", "vanilla"];
    return element("table", {},
        element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", {scope: "col", class: head}, head)))),
        element("tbody", {}, ...candidates(token).map((candidate) => row(candidate, mixed))));
}

function row(candidate, mixed) {
    const name = element("th", {scope: "row"}, nameOf(candidate), candidate.chosen ? element("b", {}, " chosen") : "");
    const shares = mixed ? ["vanilla", "mixed"] : ["vanilla"];
    return element("tr", {class: candidate.chosen ? "chosen" : null, "data-id": candidate.id}, name,
        ...shares.map((kind) => share(kind, candidate[kind])));
}

function share(kind, probability) {
    const cell = element("td", {class: kind}, percent(probability));
    cell.style.setProperty("--share", probability ?? 0);
    return cell;
}

/** The candidates of the token, the most probable first; `vanilla` and `mixed` are null if the server did not list them. */
function candidates(token) {
    const vanilla = token.vanilla_top_logprobs ?? token.top_logprobs ?? [];
    const mixed = token.vanilla_top_logprobs ? token.top_logprobs : [];
    const rows = new Map();
    const add = (candidate, kind) => {
        const known = rows.get(candidate.id) ?? {...candidate, vanilla: null, mixed: null, chosen: candidate.id === token.id};
        rows.set(candidate.id, {...known, [kind]: Math.exp(candidate.logprob)});
    };
    vanilla.forEach((candidate) => add(candidate, "vanilla"));
    mixed.forEach((candidate) => add(candidate, "mixed"));
    // The chosen token may be in neither list; its logprob is from the distribution that it was chosen from.
    add(token, token.vanilla_top_logprobs ? "mixed" : "vanilla");
    return [...rows.values()];
}

function percent(probability) {
    if (probability === null) return "–";
    if (probability > 0 && probability < 0.001) return "< 0.1 %";
    return `${(100 * probability).toFixed(1)} %`;
}

/** A token's text with visible spaces, or its bytes if they are part of a character. */
export function nameOf(token) {
    const text = token.bytes ? decode(token.bytes) : token.token;
    if (text === null) return token.bytes.map((byte) => `‹${byte.toString(16).toUpperCase().padStart(2, "0")}›`).join("");
    if (text === "") return "(end or special)";
    return text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥");
}
