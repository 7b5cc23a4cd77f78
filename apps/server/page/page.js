// Connects the parts of the page: composer, settings, keyboard and pointer, and what /props says about the server.

import {firstToken, lastToken, moveFocus, pieceOf} from "./answer_view.js";
import {models, props} from "./api.js";
import {Conversation} from "./conversation.js";
import {element, find} from "./dom.js";
import {HarpOptions} from "./options.js";
import {keepConversation, keptConversation, load, save} from "./store.js";
import * as tooltip from "./tooltip.js";

const CANDIDATES = 6;  // rows of a tooltip
const CHAT_DEFAULTS = {temperature: 0, maxTokens: 256, system: "", theme: "system"};
const LOADING_POLL = 1000;  // ms
const NEAR_END = 40;  // pixels

const wide = matchMedia("(min-width: 60rem)");  // the same width as in the style sheet

const stored = load();
const composer = find("#composer");
const prompt = find("#prompt");
const send = find("#send");
const node = find("#conversation");
const chatForm = find("#chat-options");
const settingsToggle = find("#settings-toggle");
const modeInputs = [...document.querySelectorAll("[name=mode]")];

const harp = new HarpOptions(find("#harp-options"), stored.harp ?? {}, (changes) => save({harp: changes}));
const conversation = new Conversation(node, requestOf, onConversation);
// names that another version of the page has left behind have no input here
const chat = Object.fromEntries(Object.entries(CHAT_DEFAULTS).map(([name, value]) => [name, stored.chat?.[name] ?? value]));
let model;  // name of the model to ask for, if the server is a router
let samplerSeed = 0;  // for the current turn, the same in both columns
let followsEnd = true;  // false once the reader has scrolled up

const mode = () => modeInputs.find((input) => input.checked).value;

function requestOf(lane, turnMode) {
    const comparing = turnMode === "compare" ? {enabled: lane === "main"} : {};
    return {
        model,
        stream: true,
        stream_options: {include_usage: true},
        logprobs: true,
        top_logprobs: CANDIDATES,
        max_tokens: chat.maxTokens,
        temperature: chat.temperature,
        seed: samplerSeed,
        harp: lane === "vanilla" ? comparing : harp.request && {...harp.request, ...comparing},
    };
}

// Composer

function ask(question) {
    if (!question.trim() || conversation.answering) return;
    samplerSeed = Math.floor(Math.random() * 2 ** 31);
    find("#empty").hidden = true;
    prompt.value = "";
    fitPrompt();
    conversation.ask(question, mode(), chat.system.trim());
    node.scrollTop = node.scrollHeight;
}

function onConversation() {
    const {answering} = conversation;
    if (send.dataset.answering !== String(answering)) {
        send.dataset.answering = answering;
        send.textContent = answering ? "Stop" : "Send";
        find("#status").textContent = answering ? "Answering" : summary();
    }
    if (followsEnd) node.scrollTop = node.scrollHeight;
}

/** The text for a screen reader once an answer is complete, instead of each token. */
function summary() {
    return [...node.querySelectorAll(".turn:last-child .answer")]
        .map((answer) => `${answer.getAttribute("aria-label")}: ${[...find(".figures", answer).children]
            .map((figure) => figure.textContent).join(", ")}.`)
        .join(" ");
}

/** The text box grows with its text, up to a limit in the style sheet. */
function fitPrompt() {
    prompt.style.height = "auto";
    const borders = prompt.offsetHeight - prompt.clientHeight;
    prompt.style.height = `${prompt.scrollHeight + borders}px`;
}

composer.addEventListener("submit", (event) => {
    event.preventDefault();
    if (conversation.answering) conversation.stop();
    else ask(prompt.value);
});

prompt.addEventListener("input", fitPrompt);
prompt.addEventListener("keydown", (event) => {
    // Enter also ends the input of a composed character (Chinese, Japanese, ...); that must not send the text.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    ask(prompt.value);
});

find("#new-chat").addEventListener("click", () => {
    conversation.clear();
    tooltip.hide();
    find("#empty").hidden = false;
    prompt.focus();
});

find("#empty .examples").addEventListener("click", ({target}) => {
    if (target.matches("button")) ask(target.textContent);
});

/** Shows the conversation that this tab had before it was reloaded. */
function restoreConversation() {
    try {
        conversation.restore(keptConversation());
    } catch {
        conversation.clear();  // there is none, or its content is not ours
    }
    const last = conversation.turns.at(-1);
    if (!last) return;
    find("#empty").hidden = true;
    modeInputs.forEach((input) => {
        input.checked = input.value === last.mode;
    });
    node.scrollTop = node.scrollHeight;
}

document.addEventListener("visibilitychange", () => {
    if (document.hidden) keepConversation(conversation);  // also when the page is left
});

node.addEventListener("scroll", () => {
    followsEnd = node.scrollHeight - node.scrollTop - node.clientHeight < NEAR_END;
    tooltip.follow(node);
});

// Tokens: pointer, touch and keyboard

function showTooltip(token) {
    const piece = pieceOf(token);
    if (piece) tooltip.show(token, piece);
}

node.addEventListener("pointerover", ({target, pointerType}) => {
    if (pointerType !== "mouse") return;
    const token = target.closest(".token");
    if (token) showTooltip(token);
    else tooltip.hideSoon();
});
node.addEventListener("pointerleave", () => tooltip.hideSoon());
find("#tooltip").addEventListener("pointerenter", () => tooltip.keep());
find("#tooltip").addEventListener("pointerleave", () => tooltip.hideSoon());

document.addEventListener("click", ({target}) => {
    const token = target.closest(".token");
    if (token) showTooltip(token);
    else if (!target.closest("#tooltip")) tooltip.hide();
});

node.addEventListener("focusin", ({target}) => {
    if (target.matches(".token")) showTooltip(target);
});
node.addEventListener("focusout", () => tooltip.hide());

node.addEventListener("keydown", (event) => {
    const {target, key} = event;
    if (!target.matches(".text, .token")) return;
    const moves = {
        ArrowRight: () => moveFocus(target, 1),
        ArrowLeft: () => moveFocus(target, -1),
        Home: () => firstToken(target)?.focus(),
        End: () => lastToken(target)?.focus(),
    };
    if (!moves[key] || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    moves[key]();
});

document.addEventListener("keydown", ({key}) => {
    if (key !== "Escape") return;
    if (tooltip.isOpen()) tooltip.hide();
    else if (!wide.matches) showSettings(false);  // in narrow windows settings cover the conversation
});
window.addEventListener("resize", () => tooltip.follow(node));

// Settings

function showSettings(open) {
    document.body.classList.toggle("settings-open", open);
    settingsToggle.setAttribute("aria-expanded", open);
}

function showChatSettings() {
    for (const [name, value] of Object.entries(chat)) {
        const input = chatForm.elements[name];
        if (input !== document.activeElement || input.type === "range") input.value = value;
        const output = find("output", input.closest("label"));
        if (output) output.value = value;
    }
    document.documentElement.dataset.theme = chat.theme;
}

chatForm.addEventListener("input", ({target}) => {
    if (!target.checkValidity()) return;
    chat[target.name] = ["number", "range"].includes(target.type) ? Number(target.value) : target.value;
    showChatSettings();
    save({chat});
});
chatForm.addEventListener("submit", (event) => event.preventDefault());

settingsToggle.addEventListener("click", () => showSettings(!document.body.classList.contains("settings-open")));

modeInputs.forEach((input) => input.addEventListener("change", () => {
    document.body.dataset.mode = mode();
}));

// The server

async function meetServer() {
    const notice = find("#notice");
    if (model) say(notice, "The model is being loaded …");
    try {
        const server = await props(model);
        notice.hidden = true;
        if (server.role === "router") {
            await offerModels(notice);
            return;
        }
        if (!model) find("#model").textContent = fileName(server.model_alias || server.model_path);
        conversation.contextSize = server.default_generation_settings?.n_ctx ?? Infinity;
        harp.setDefaults(server.harp);
        showHarp(notice);
    } catch (error) {
        if (error.type === "unavailable_error") {
            say(notice, "The model is being loaded …");
            setTimeout(meetServer, LOADING_POLL);
            return;
        }
        const retry = element("button", {type: "button"}, "Retry");
        retry.addEventListener("click", meetServer);
        say(notice, `${error.title ?? error} ${error.detail ?? ""} `, retry);
    }
}

/** A router serves several models; the user chooses one in the header. */
async function offerModels(notice) {
    const names = await models();
    if (names.length === 0) {
        say(notice, "The server has no model: give it some by -m, --models-dir or --models-preset.");
        return;
    }
    const choice = element("select", {"aria-label": "model"}, ...names.map((name) => element("option", {}, name)));
    choice.value = names.includes(stored.model) ? stored.model : names[0];
    const choose = () => {
        model = choice.value;
        save({model});
        meetServer();
    };
    choice.addEventListener("change", choose);
    find("#model").replaceChildren(choice);
    choose();
}

const fileName = (path) => path.split(/[\\/]/).at(-1);

function showHarp(notice) {
    document.body.dataset.harp = harp.available ? "on" : "off";
    if (harp.available) return;
    say(notice, "HARP is off on this server: a plain chat, without entropies and second passes.");
    modeInputs.forEach((input) => {
        input.checked = input.value === "chat";
        input.disabled = input.value !== "chat";
    });
}

function say(notice, ...content) {
    notice.replaceChildren(...content);
    notice.hidden = false;
}

restoreConversation();
document.body.dataset.mode = mode();
showChatSettings();
showSettings(wide.matches);
if (matchMedia("(pointer: fine)").matches) prompt.focus();
meetServer();
