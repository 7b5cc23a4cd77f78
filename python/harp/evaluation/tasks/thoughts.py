"""What a reasoning model thinks before it answers is no answer. Its marks are those that models write; none can be part of an answer.

answers.py, programs.py and summaries.py run this file by its path.
"""

import re

# DeepSeek, Qwen and others; Kimi; Mistral; EXAONE, Seed; Command; Sky-T1; gpt-oss
BEGINS = re.compile(r"<(?:seed:)?(?:think|thinking|thought)>|◁think▷|\[THINK\]|<\|START_THINKING\|>|<\|begin_of_thought\|>"
                    r"|<\|channel\|>(?:analysis|commentary)\b")
ENDS = re.compile(r"</(?:seed:)?(?:think|thinking|thought)>|◁/think▷|\[/THINK\]|<\|END_THINKING\|>|<\|end_of_thought\|>"
                  r"|<\|channel\|>final<\|message\|>|\A\s*analysis(?s:.*)assistantfinal")  # the last: where control tokens are left out


def without_thoughts(text):
    """What follows the last end of thoughts, up to where others begin that do not end."""
    return BEGINS.split(ENDS.split(text)[-1])[0]
