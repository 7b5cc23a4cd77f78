"""Where does the model hesitate? Plots the entropies of an answer: python examples/entropy.py model.gguf [picture.png]

Cells marked by "# %%" run one by one in a notebook (Jupyter, VS Code).
"""

# %% A model, and a question in its chat template
import sys

import matplotlib.pyplot as plt

import harp

model = harp.Model(sys.argv[1])
session = harp.Session(model, harp.HarpOptions(threshold=2.0, strength=0.05), n_ctx=1024)
question = "Name three rivers."
prompt = model.apply_chat_template([{"role": "user", "content": question}]) if model.has_chat_template else question

# %% The answer, with the record of each step
stream = session.generate(prompt, max_tokens=40)
tokens = list(stream)
print(stream.answer.text)
print(f"hesitated at {stream.answer.hesitations} of {stream.answer.steps} steps")

# %% Entropy over the answer: dark bars hesitated, and were mixed with a second pass
figure, axes = plt.subplots(figsize=(0.28 * len(tokens) + 1, 3.2), layout="constrained")
colors = ["#b4451f" if token.hesitated else "#e7c3a8" for token in tokens]
axes.bar(range(len(tokens)), [token.entropy for token in tokens], color=colors)
axes.axhline(session.options.threshold, color="gray", linewidth=1, label="threshold")
axes.set_xticks(range(len(tokens)), [token.text.strip() or "·" for token in tokens], rotation=90)
axes.set_ylabel("entropy, bits")
axes.legend(frameon=False)
figure.savefig(sys.argv[2] if len(sys.argv) > 2 else "entropy.png", dpi=120)
