#include "flags/llama_flags.h"

#include <algorithm>

namespace harp::cli {

namespace {

using Names = std::vector<std::string_view>;

const Names all = {"generate", "chat", "compare", "score", "bench", "calibrate", "info", "python"};
const Names answering = {"generate", "chat", "compare", "bench", "calibrate"};
const Names given_text = {"generate", "compare", "score", "calibrate"};
const Names drafting = {"generate", "chat", "bench", "python"};
const Names sampling = {"generate", "chat", "compare", "bench", "calibrate", "python"};
const Names none = {};

struct Rule {
    const Names & commands;  // where the flags work
    Names flags;             // one name of each flag; of "--x, --no-x" a name listed alone works alone
};

/// The rule that lists a flag's name as it was given decides; if there is none, the rule that lists another of its
/// names.
const std::vector<Rule> & rules() {
    static const Names with_length = {"generate", "chat", "compare", "bench"};
    static const Names with_stop_strings = {"generate", "chat", "compare", "calibrate"};
    static const Names with_escapes = {"generate", "chat", "compare", "score", "calibrate"};
    static const Names with_template = {"generate", "chat", "compare", "bench", "calibrate", "info", "python"};
    static const Names with_context = {"generate", "chat", "compare", "score", "bench", "calibrate", "info"};
    static const std::vector<Rule> table = {
        // the command itself
        {all, {"--help", "--version"}},
        {with_context, {"--cache-list", "--list-devices", "--color"}},
        {all,
         {"--log-disable", "--log-file", "--log-jsonl", "--log-colors", "--verbose", "--verbosity", "--log-prefix",
          "--log-timestamps"}},
        // the model: where it is and how it is loaded
        {all,
         {"--model", "--model-url", "--docker-repo", "--hf-repo", "--hf-file", "--hf-token", "--offline",
          "--gpt-oss-20b-default", "--gpt-oss-120b-default", "--vision-gemma-4b-default",
          "--vision-gemma-12b-default"}},
        {all, {"--rpc",      "--load-mode", "--lazy-mode",  "--numa",       "--device",        "--override-tensor",
               "--cpu-moe",  "--n-cpu-moe", "--n-cpu-ffn",  "--gpu-layers", "--split-mode",    "--tensor-split",
               "--main-gpu", "--fit",       "--fit-target", "--fit-ctx",    "--check-tensors", "--override-kv",
               "--repack",   "--no-host",   "--warmup"}},
        {all,
         {"--lora", "--lora-scaled", "--control-vector", "--control-vector-scaled", "--control-vector-layer-range"}},
        // the context
        {with_context, {"--ctx-size"}},
        {all,
         {"--threads", "--threads-batch", "--batch-size", "--ubatch-size", "--swa-full", "--flash-attn", "--kv-offload",
          "--cache-type-k", "--cache-type-v", "--op-offload", "--rope-scaling", "--rope-scale", "--rope-freq-base",
          "--rope-freq-scale", "--yarn-orig-ctx", "--yarn-ext-factor", "--yarn-attn-factor", "--yarn-beta-slow",
          "--yarn-beta-fast"}},
        // what is answered, and how much
        {given_text, {"--prompt", "--file", "--binary-file"}},
        {with_escapes, {"--escape"}},
        {answering, {"--system-prompt", "--system-prompt-file"}},
        {with_template,
         {"--chat-template", "--chat-template-file", "--chat-template-kwargs", "--jinja", "--reasoning",
          "--reasoning-effort", "--reasoning-preserve"}},
        {with_length, {"--predict"}},
        {with_stop_strings, {"--reverse-prompt"}},
        // the sampler; a Python Session has arguments for the six that its Model does not accept
        {sampling,
         {"--samplers",
          "--sampler-seq",
          "--ignore-eos",
          "--top-nsigma",
          "--xtc-probability",
          "--xtc-threshold",
          "--typical",
          "--repeat-last-n",
          "--presence-penalty",
          "--frequency-penalty",
          "--dry-multiplier",
          "--dry-base",
          "--dry-allowed-length",
          "--dry-penalty-last-n",
          "--dry-sequence-breaker",
          "--adaptive-target",
          "--adaptive-decay",
          "--dynatemp-range",
          "--dynatemp-exp",
          "--mirostat",
          "--mirostat-lr",
          "--mirostat-ent",
          "--logit-bias",
          "--grammar",
          "--grammar-file",
          "--json-schema",
          "--json-schema-file"}},
        {answering, {"--seed", "--temp", "--top-k", "--top-p", "--min-p", "--repeat-penalty"}},
        // speculation
        {drafting,
         {"--spec-default",
          "--spec-type",
          "--spec-draft-model",
          "--spec-draft-hf",
          "--spec-draft-threads",
          "--spec-draft-threads-batch",
          "--spec-draft-type-k",
          "--spec-draft-type-v",
          "--spec-draft-override-tensor",
          "--spec-draft-cpu-moe",
          "--spec-draft-n-cpu-moe",
          "--spec-draft-n-max",
          "--spec-draft-n-min",
          "--spec-draft-p-split",
          "--spec-draft-p-min",
          "--spec-draft-backend-sampling",
          "--spec-draft-device",
          "--spec-draft-ngl",
          "--spec-ngram-mod-n-min",
          "--spec-ngram-mod-n-max",
          "--spec-ngram-mod-n-match",
          "--spec-ngram-simple-size-n",
          "--spec-ngram-simple-size-m",
          "--spec-ngram-simple-min-hits",
          "--spec-ngram-map-k-size-n",
          "--spec-ngram-map-k-size-m",
          "--spec-ngram-map-k-min-hits",
          "--spec-ngram-map-k4v-size-n",
          "--spec-ngram-map-k4v-size-m",
          "--spec-ngram-map-k4v-min-hits",
          "--draft",
          "--draft-min"}},
        // flags that ask for what happens anyway
        {all, {"--no-mmproj", "--no-mmproj-auto"}},
        {answering, {"--no-context-shift", "--no-display-prompt"}},
        // flags of other programs
        {none,
         {"--completion-bash",
          "--server-base",
          "--verbose-prompt",
          "--display-prompt",
          "--keep",
          "--context-shift",
          "--ctx-checkpoints",
          "--cache-ram",
          "--perf",
          "--show-timings",
          "--special",
          "--single-turn",
          "--multiline-input",
          "--parallel",
          "--backend-sampling",
          "--defrag-thold",
          "--output",
          "--simple-io",
          "--log-prompts-dir",
          "--skip-chat-parsing",
          "--reasoning-format",
          "--reasoning-budget",
          "--reasoning-budget-message",
          "--spec-synth-len",
          "--spec-synth-rates"}},
        {none,
         {"--mmproj", "--mmproj-url", "--mmproj-auto", "--mmproj-offload", "--mmproj-device", "--image",
          "--image-min-tokens", "--image-max-tokens", "--video-fps", "--video-timestamp-interval",
          "--video-ffmpeg-dir"}},
        // flags of a thread pool, which only llama.cpp's own programs create
        {none,
         {"--cpu-mask", "--cpu-range", "--cpu-strict", "--prio", "--poll", "--cpu-mask-batch", "--cpu-range-batch",
          "--cpu-strict-batch", "--prio-batch", "--poll-batch", "--spec-draft-cpu-mask", "--spec-draft-cpu-range",
          "--spec-draft-cpu-strict", "--spec-draft-prio", "--spec-draft-poll", "--spec-draft-cpu-mask-batch",
          "--spec-draft-cpu-strict-batch", "--spec-draft-prio-batch", "--spec-draft-poll-batch"}},
    };
    return table;
}

bool has(const Names & names, std::string_view name) {
    return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

FlagUse use_of_flag(std::string_view command, std::string_view given, const std::vector<std::string> & names) {
    const auto find = [](auto && is_named) {
        const auto rule = std::find_if(rules().begin(), rules().end(), is_named);
        return rule == rules().end() ? nullptr : &*rule;
    };
    const Rule * rule = find([&](const Rule & one) { return has(one.flags, given); });
    if (rule == nullptr) {
        rule = find([&](const Rule & one) {
            return std::any_of(names.begin(), names.end(), [&](const auto & name) { return has(one.flags, name); });
        });
    }
    if (rule == nullptr) return FlagUse::unknown;
    return has(rule->commands, command) ? FlagUse::works : FlagUse::refused;
}

const std::vector<std::string_view> & commands_with_llama_flags() {
    return all;
}

std::vector<std::string_view> flags_in_table() {
    Names flags;
    for (const Rule & rule : rules()) flags.insert(flags.end(), rule.flags.begin(), rule.flags.end());
    return flags;
}

}  // namespace harp::cli
