"""MMLU-Pro with several categories as one task. Each question is asked with the worked examples of its own category.

lm-eval has one task for each of the 14 categories, and each needs questions of its category. lm-eval loads this file by its path.
"""

from lm_eval.api.task import ConfigurableTask


class MmluPro(ConfigurableTask):
    def __init__(self, config):
        super().__init__(config={key: value for key, value in config.items() if key != "class"})
        self._examples = self.sampler.df

    def fewshot_context(self, doc, *args, **kwargs):
        self.sampler.replace_df([example for example in self._examples if example["category"] == doc["category"]])
        return super().fewshot_context(doc, *args, **kwargs)
