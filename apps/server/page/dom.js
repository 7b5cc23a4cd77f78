// Small helpers for the DOM. Text is inserted only as text nodes, so a model's output is never read as HTML.

export const find = (selector, root = document) => root.querySelector(selector);

/** element("p", {class: "error", hidden: true}, "text", child): true sets an empty attribute, false and null set none. */
export function element(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
        if (value === true) node.setAttribute(name, "");
        else if (value !== false && value != null) node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
}
