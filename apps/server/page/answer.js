// One answer as data: text in pieces with their tokens, figures, and how it ended. Does not use the DOM.

/**
 * A piece of text and the tokens that it came from, normally one. Pieces and tokens differ if a character is spread over
 * several tokens: the server holds back such bytes and sends the text whole.
 */
class Piece {
    constructor(channel, text, tokens) {
        this.channel = channel;  // "content" or "reasoning"
        this.text = text;
        // The least certain token represents the piece. There is none if the server sent only text.
        this.token = tokens.reduce((most, token) => ((token.entropy ?? 0) > (most?.entropy ?? -1) ? token : most), null);
        this.entropy = this.token?.entropy;  // undefined on a server with --harp-off
        this.hesitated = tokens.some((token) => token.hesitated);
    }

    equals(other) {
        return this.text === other.text && this.token?.id === other.token?.id;
    }

    /** @param saved a piece that went through JSON */
    static from(saved) {
        return Object.assign(new Piece(saved.channel, saved.text, []), saved);
    }
}

export class Answer {
    constructor() {
        this.pieces = [];
        this.state = "streaming";  // then "done", "stopped" or "failed"
        this.finishReason = null;
        this.maxTokens = Infinity;  // that were asked for
        this.error = null;
        this.usage = null;
        this.timings = null;
        this.seen = {tokens: 0, hesitations: 0, entropy: 0, measured: 0};
        this.firstTokenAt = null;
        this.waiting = [];  // tokens whose text has not come yet
    }

    /** @param saved an answer that went through JSON; one that was in progress then is stopped */
    static from(saved) {
        const answer = Object.assign(new Answer(), saved, {pieces: saved.pieces.map(Piece.from)});
        if (answer.state === "streaming") answer.state = "stopped";
        return answer;
    }

    toJSON() {
        return {...this, firstTokenAt: null, waiting: []};  // no clock goes on in the next visit
    }

    get text() {
        return this.pieces.filter((piece) => piece.channel === "content").map((piece) => piece.text).join("");
    }

    /** Adds a chunk; returns the new pieces. */
    add(chunk) {
        this.usage = chunk.usage ?? this.usage;
        this.timings = chunk.timings ?? this.timings;
        const choice = chunk.choices?.[0];
        if (!choice) return [];
        this.finishReason = choice.finish_reason ?? this.finishReason;
        const tokens = choice.logprobs?.content ?? [];
        tokens.forEach((token) => this.count(token));
        this.waiting.push(...tokens);
        const {content, reasoning_content: reasoning} = choice.delta ?? {};
        if (!content && !reasoning) return [];
        const added = content && reasoning ?
            [new Piece("reasoning", reasoning, []), ...pieces("content", content, this.waiting)] :
            pieces(content ? "content" : "reasoning", content || reasoning, this.waiting);
        this.waiting = [];
        this.pieces.push(...added);
        return added;
    }

    count(token) {
        this.firstTokenAt ??= performance.now();
        this.seen.tokens += 1;
        this.seen.hesitations += token.hesitated ? 1 : 0;
        if (token.entropy === undefined) return;
        this.seen.entropy += token.entropy;
        this.seen.measured += 1;
    }

    /** The server's figures once it has sent them, before that the counts so far. Unknown figures are null. */
    figures() {
        const {seen, usage, timings} = this;
        const seconds = this.firstTokenAt === null ? 0 : (performance.now() - this.firstTokenAt) / 1000;
        const steps = usage?.harp?.steps ?? seen.measured;
        const hesitations = usage?.harp?.hesitations ?? seen.hesitations;
        return {
            tokens: (usage?.completion_tokens ?? seen.tokens) || null,
            tokensPerSecond: timings?.predicted_per_second ?? (seen.tokens > 1 && seconds > 0 ? (seen.tokens - 1) / seconds : null),
            hesitations: steps > 0 ? hesitations : null,
            hesitationShare: steps > 0 ? hesitations / steps : null,
            meanEntropy: seen.measured > 0 ? seen.entropy / seen.measured : null,
            secondPassSeconds: usage?.harp?.second_pass_seconds || null,
        };
    }
}

function pieces(channel, text, tokens) {
    const texts = tokens.map((token) => decode(token.bytes));
    return !texts.includes(null) && texts.join("") === text ?
        tokens.map((token, i) => new Piece(channel, texts[i], [token])) :
        [new Piece(channel, text, tokens)];
}

/** The text of a token's bytes; null if they are not whole characters. */
export function decode(bytes) {
    try {
        return new TextDecoder("utf-8", {fatal: true, ignoreBOM: true}).decode(new Uint8Array(bytes));
    } catch {
        return null;
    }
}

/** Index of the first piece from `start` on that differs, among pieces that both have; -1 if there is none so far. */
export function firstDifference(a, b, start = 0) {
    const end = Math.min(a.length, b.length);
    for (let i = start; i < end; ++i) {
        if (!a[i].equals(b[i])) return i;
    }
    return -1;
}
