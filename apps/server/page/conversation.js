// The conversation: turns with a question and its answers: one answer in chat mode, two lanes side by side in compare mode.

import {Answer, firstDifference} from "./answer.js";
import {AnswerView} from "./answer_view.js";
import {chatChunks, RequestError} from "./api.js";
import {element} from "./dom.js";
import {nameOf} from "./tooltip.js";

// A lane is one sequence of answers. "main" has the user's options and is the only one in chat mode.
const LANES = {chat: ["main"], compare: ["vanilla", "main"]};
const TITLES = {chat: {main: "Answer"}, compare: {vanilla: "Vanilla", main: "HARP"}};

export class Conversation {
    /**
     * @param node the element that shows it
     * @param requestOf lane, mode => body of a request without its messages
     * @param onChange called when answering begins or ends, and while tokens arrive
     */
    constructor(node, requestOf, onChange) {
        this.node = node;
        this.requestOf = requestOf;
        this.onChange = onChange;
        this.turns = [];
        this.abort = null;  // aborts the answers in progress
        this.contextSize = Infinity;
    }

    get answering() {
        return this.abort !== null;
    }

    stop() {
        this.abort?.abort();
    }

    clear() {
        this.stop();
        this.turns.forEach((turn) => turn.node.remove());
        this.turns = [];
    }

    async ask(question, mode, system) {
        await this.answer(this.add(question, mode, system), LANES[mode]);
    }

    add(question, mode, system) {
        const turn = new Turn(question, mode, system, (lane) => this.answer(turn, [lane]));
        this.turns.push(turn);
        this.node.append(turn.node);
        return turn;
    }

    toJSON() {
        return {turns: this.turns, contextSize: this.contextSize};
    }

    /** Shows a conversation of an earlier visit. @param saved one that went through JSON */
    restore({turns, contextSize}) {
        for (const {question, mode, system, answers} of turns) {
            const turn = this.add(question, mode, system);
            for (const [lane, answer] of Object.entries(answers)) turn.restore(lane, Answer.from(answer), contextSize ?? Infinity);
        }
    }

    /** Answers (again) in some lanes of a turn at the same time. */
    async answer(turn, lanes) {
        if (this.answering || turn !== this.turns.at(-1)) return;
        this.abort = new AbortController();
        const {signal} = this.abort;
        lanes.forEach((lane) => turn.begin(lane));
        this.onChange();
        await Promise.all(lanes.map((lane) => this.stream(turn, lane, signal)));
        this.abort = null;
        this.onChange();
    }

    async stream(turn, lane, signal) {
        const answer = turn.answers[lane];
        const body = {...this.requestOf(lane, turn.mode), messages: this.messages(turn, lane)};
        answer.maxTokens = body.max_tokens;
        try {
            for await (const chunk of chatChunks(body, signal)) {
                turn.add(lane, chunk);
                this.onChange();
            }
            answer.state = "done";
        } catch (error) {
            answer.state = error.name === "AbortError" ? "stopped" : "failed";
            answer.error = error instanceof RequestError ? error : new RequestError("The page failed.", String(error));
        }
        turn.update(lane, this.contextSize);
    }

    /** The history of a lane. For turns that it did not answer, it has the main lane's answers. */
    messages(turn, lane) {
        const earlier = this.turns.slice(0, this.turns.indexOf(turn)).flatMap(({question, answers}) => {
            const {text} = answers[lane] ?? answers.main;
            return text ? [{role: "user", content: question}, {role: "assistant", content: text}] : [];
        });
        const system = turn.system ? [{role: "system", content: turn.system}] : [];
        return [...system, ...earlier, {role: "user", content: turn.question}];
    }
}

class Turn {
    constructor(question, mode, system, onRetry) {
        this.question = question;
        this.mode = mode;
        this.system = system;
        this.answers = {};
        this.views = {};
        this.compared = 0;  // pieces known to be the same in both lanes
        this.parted = false;
        for (const lane of LANES[mode]) {
            this.views[lane] = new AnswerView(lane, TITLES[mode][lane], () => onRetry(lane));
        }
        this.parting = element("p", {class: "parting", role: "status", hidden: true});
        this.columns = element("div", {class: "answers"}, ...Object.values(this.views).map((view) => view.node));
        this.node = element("section", {class: "turn", "data-mode": mode},
            element("p", {class: "question", dir: "auto"}, question), this.columns, this.parting);
    }

    begin(lane) {
        this.answers[lane] = new Answer();
        this.views[lane].clear();
        this.views[lane].update(this.answers[lane]);
        this.forgetParting();
    }

    restore(lane, answer, contextSize) {
        this.answers[lane] = answer;
        this.views[lane].append(answer.pieces);
        this.update(lane, contextSize);
    }

    toJSON() {
        const {question, mode, system, answers} = this;
        return {question, mode, system, answers};
    }

    add(lane, chunk) {
        this.views[lane].append(this.answers[lane].add(chunk));
        this.views[lane].update(this.answers[lane]);
        this.compare();
    }

    update(lane, contextSize) {
        this.views[lane].update(this.answers[lane], contextSize);
        this.compare();
    }

    forgetParting() {
        this.compared = 0;
        this.parted = false;
        this.parting.hidden = true;
        this.columns.removeAttribute("data-parted");
        this.columns.querySelectorAll(".shared, .parts").forEach((token) => token.classList.remove("shared", "parts"));
    }

    /** Finds where the two answers start to differ, as soon as that is known. */
    compare() {
        const {vanilla, main} = this.answers;
        if (this.parted || !vanilla || !main) return;
        const ended = vanilla.state === "done" && main.state === "done";
        const [a, b] = [vanilla.pieces, main.pieces];
        const shorter = Math.min(a.length, b.length);
        const found = firstDifference(a, b, this.compared);
        this.compared = shorter;
        if (found >= 0) this.part(found);
        else if (ended && a.length !== b.length) this.part(shorter);
        else if (ended) this.say("Both answers are the same.");
    }

    part(index) {
        this.parted = true;
        this.columns.dataset.parted = index;
        Object.values(this.views).forEach((view) => view.markParting(index));
        const [a, b] = [this.answers.vanilla.pieces[index], this.answers.main.pieces[index]];
        const entropy = (a ?? b).entropy;
        this.say(`They part at token ${index + 1}: vanilla ${quoted(a)}, HARP ${quoted(b)}` +
            (entropy === undefined ? "." : ` (entropy ${entropy.toFixed(2)} bits).`));
    }

    say(text) {
        this.parting.textContent = text;
        this.parting.hidden = false;
    }
}

function quoted(piece) {
    if (!piece) return "ended";
    return `“${piece.token ? nameOf(piece.token) : piece.text}”`;
}
