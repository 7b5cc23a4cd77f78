// An answer on the page: shaded tokens, running figures, and what went wrong.

import {element, find} from "./dom.js";

const DARKEST = 6;  // bits; the legend's right end
const pieceOfToken = new WeakMap();

export const pieceOf = (token) => pieceOfToken.get(token);

export class AnswerView {
    /** @param onRetry called when the user wants to repeat a failed answer */
    constructor(lane, title, onRetry) {
        this.text = element("div", {
            class: "text", dir: "auto", tabindex: "0", role: "group", "aria-label": `${title}; arrow keys move between tokens`,
        });
        this.reasoning = element("div", {class: "text", dir: "auto", tabindex: "0", role: "group", "aria-label": "Reasoning"});
        this.reasoningBox = element("details", {class: "reasoning", open: true, hidden: true},
            element("summary", {}, "Reasoning"), this.reasoning);
        this.problem = element("div", {class: "problem", role: "status", hidden: true});
        this.figures = element("p", {class: "figures"});
        this.node = element("article", {class: "answer", "data-lane": lane, "aria-label": title},
            element("h3", {}, title), this.reasoningBox, this.text, this.problem, this.figures);
        this.onRetry = onRetry;
        this.tokens = [];  // one element per piece
    }

    clear() {
        this.tokens = [];
        this.text.replaceChildren();
        this.reasoning.replaceChildren();
        this.reasoningBox.hidden = true;
    }

    append(pieces) {
        for (const piece of pieces) {
            const token = tokenElement(piece);
            this.tokens.push(token);
            if (piece.channel === "reasoning") this.reasoningBox.hidden = false;
            (piece.channel === "reasoning" ? this.reasoning : this.text).append(token);
        }
    }

    /** Shows everything except the text. */
    update(answer, contextSize) {
        this.node.dataset.state = answer.state;
        this.node.setAttribute("aria-busy", answer.state === "streaming");
        this.figures.replaceChildren(...figureElements(answer));
        const problem = problemOf(answer, contextSize);
        this.problem.hidden = problem === null;
        if (problem !== null) this.problem.replaceChildren(...problem, ...this.retryButton(answer));
    }

    retryButton(answer) {
        if (answer.state !== "failed") return [];
        const button = element("button", {type: "button", class: "retry"}, "Retry");
        button.addEventListener("click", this.onRetry);
        return [button];
    }

    /** Marks the token where two answers start to differ, and the shared tokens before it. */
    markParting(index) {
        this.tokens.slice(0, index).forEach((token) => token.classList.add("shared"));
        this.tokens[index]?.classList.add("parts");
    }
}

function tokenElement(piece) {
    const classes = ["token", piece.hesitated && "hesitated", /^\n+$/.test(piece.text) && "newline"].filter(Boolean);
    const token = element("span", {class: classes.join(" "), tabindex: "-1"}, piece.text);
    if (piece.entropy !== undefined) {
        token.dataset.entropy = piece.entropy;
        token.style.setProperty("--shade", Math.min(piece.entropy / DARKEST, 1));
    }
    pieceOfToken.set(token, piece);
    return token;
}

function figureElements(answer) {
    const figures = answer.figures();
    const shown = {
        tokens: [figures.tokens, (n) => `${n} ${n === 1 ? "token" : "tokens"}`],
        speed: [figures.tokensPerSecond, (speed) => `${speed.toFixed(1)} tokens/s`],
        hesitations: [figures.hesitations, (n) => `${n} ${n === 1 ? "hesitation" : "hesitations"} ` +
            `(${Math.round(100 * figures.hesitationShare)} %)`],
        entropy: [figures.meanEntropy, (bits) => `mean entropy ${bits.toFixed(2)} bits`],
        seconds: [figures.secondPassSeconds, (seconds) => `second passes ${seconds.toFixed(2)} s`],
    };
    return Object.entries(shown)
        .filter(([, [value]]) => value !== null)
        .map(([name, [value, text]]) => element("span", {"data-figure": name}, text(value)));
}

/** Nodes that say how the answer ended, if that is worth a line; otherwise null. */
function problemOf(answer, contextSize) {
    if (answer.state === "stopped") return ["Stopped."];
    if (answer.state === "failed") {
        const {title, detail} = answer.error;
        return [element("strong", {}, title), detail ? ` ${detail}` : ""];
    }
    if (answer.state !== "done" || answer.finishReason !== "length") return null;
    const {completion_tokens: generated, total_tokens: total} = answer.usage ?? {};
    if (!(generated < answer.maxTokens)) return ["Cut at max tokens (Settings)."];
    const advice = total < contextSize ? "the negative prompt with the answer fills them." : "start a new chat.";
    return [element("strong", {}, "The context is full."), ` It holds ${contextSize} tokens: ${advice}`];
}

/** Moves the focus by `step` tokens from `token`, or into `text` if a text itself has the focus. */
export function moveFocus(from, step) {
    const text = from.closest(".text");
    const tokens = [...text.children];
    const index = tokens.indexOf(from) + step;
    tokens[Math.max(0, Math.min(index, tokens.length - 1))]?.focus();
}

export const lastToken = (from) => find(".token:last-child", from.closest(".text"));
export const firstToken = (from) => find(".token", from.closest(".text"));
