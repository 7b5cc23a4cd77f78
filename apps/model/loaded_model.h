// A loaded model with its forward pass, sampler and chat template, which most subcommands use.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "chat.h"
#include "decoding/generate.h"
#include "flags/command_line.h"
#include "harp/forward_pass.h"

namespace harp::cli {

/// @throws Error naming the file and its fault (missing, not GGUF, truncated), or why HARP refuses the model
class LoadedModel {
  public:
    /// @param n_ctx_twin of its pass
    LoadedModel(common_params params, const std::optional<Options> & options, uint32_t n_ctx_twin = 0);

    [[nodiscard]] ForwardPass & pass() { return *pass_; }
    [[nodiscard]] llama_model & model() { return *init_->model(); }
    [[nodiscard]] const llama_vocab & vocab() { return *llama_model_get_vocab(init_->model()); }
    [[nodiscard]] const common_params & params() const { return params_; }
    [[nodiscard]] const std::optional<Options> & options() const { return options_; }

    /// For what generates or scores with HARP off too: llama.cpp would abort, or sample from what is no distribution.
    /// @throws Error{unsupported_model} for models that predict no next token (T5, BERT, diffusion)
    void check_generates() const;
    /// Another pass on the same model with other options, for comparisons.
    /// @param n_sequences sequences of the pass; several share one KV cache
    [[nodiscard]] ForwardPass & add_pass(const std::optional<Options> & options, uint32_t n_sequences = 1);
    /// Gives a context of this model the flags' LoRA adapters and control vectors. @throws Error{invalid_option}
    void adapt(llama_context * context);
    /// A new sampler as the flags describe it, freshly seeded.
    [[nodiscard]] decoding::Sampler new_sampler() { return new_sampler(params_.sampling); }
    /// @throws Error{invalid_option} naming what is impossible, for example a faulty grammar
    [[nodiscard]] decoding::Sampler new_sampler(const common_params_sampling & sampling);
    /// The seed of all samplers: --seed, or a random one chosen once.
    [[nodiscard]] uint32_t sampler_seed() const { return params_.sampling.seed; }

    /// Tokenizes text, with the beginning-of-sequence token if the model uses one.
    /// @param parse_special whether "<|im_start|>" and the like in the text are control tokens
    [[nodiscard]] std::vector<llama_token> tokenize(const std::string & text, bool parse_special);
    [[nodiscard]] bool has_chat_template() const;
    /// A conversation in the model's chat template, up to where the assistant's answer begins.
    [[nodiscard]] std::string apply_chat_template(const std::vector<common_chat_msg> & messages) const;

  private:
    void set_control_vectors(llama_context * context);
    [[nodiscard]] std::string no_context_text(std::string reason) const;
    struct ContextDeleter {
        void operator()(llama_context * context) const;
    };
    common_params params_;
    std::optional<Options> options_;
    std::optional<common_control_vector_data> control_vectors_;  // the sum of those that the flags name
    common_init_result_ptr init_;
    ForwardPass * pass_ = nullptr;  // owned by the registry, with its context
    std::vector<std::unique_ptr<llama_context, ContextDeleter>> extra_contexts_;
    common_chat_templates_ptr templates_;
};

/// For llama.cpp's progress callback: shows the progress of loading a model. @return false once an interrupt is requested
/// @param line a ProgressLine
bool on_load_progress(float part, void * line);
/// Checks before a file is loaded that it is a GGUF file, and that no part of a split model is missing.
/// @param what "model", "draft model"
/// @throws Error{invalid_input}, Error{io} naming the file and its fault
void check_model_file(const std::string & what, const std::string & path);

/// Limits the context size unless the user gave one, for commands that do not need the model's largest context: 2048
/// tokens, or as many as the model was trained with. @throws as check_model_file()
void limit_context(common_params & params);
/// For commands that decode every token themselves. @throws Error{invalid_option} if speculation is asked for
void refuse_speculation(const common_params & params);

/// llama.cpp's flags that give a prompt.
constexpr auto prompt_flags = {"-p", "--prompt", "-f", "--file", "-bf", "--binary-file"};
/// The prompt from -p, -f or standard input, checked to be UTF-8 and not empty.
/// @throws Error{invalid_input}
[[nodiscard]] std::string read_prompt(const CommandLine & command_line, const common_params & params);

/// A prompt in the form in which the model gets it.
struct FormattedPrompt {
    std::string text;
    bool is_chat = false;  ///< in the model's chat template
    std::string why;       ///< the reason, for people
};
void add_format_flag(CLI::App & app, std::string & format);
/// @param format "raw", "chat" or "auto", from add_format_flag()
/// @throws Error{invalid_option} if a chat template is asked for and the model has none
[[nodiscard]] FormattedPrompt format_prompt(const LoadedModel & loaded, const std::string & prompt,
                                            const std::string & format);
/// The tokens of a negative prompt, formatted like a prompt.
/// @param text     if "", there are none
/// @param n_behind tokens that must fit into the context behind it
/// @throws Error{invalid_input} if they do not; Error{invalid_option} as format_prompt()
[[nodiscard]] std::vector<llama_token> negative_prompt_of(LoadedModel & loaded, const std::string & text,
                                                          const std::string & format, size_t n_behind = 1);
/// Appends the tokens of `text` to a prompt `n` times. @throws Error{invalid_option} if it has no tokens
void append_pauses(std::vector<llama_token> & prompt, const llama_vocab & vocab, uint32_t n, const std::string & text);
/// Number of tokens and format, as JSON.
[[nodiscard]] nlohmann::json prompt_json(const FormattedPrompt & prompt, size_t n_tokens);
[[nodiscard]] common_chat_msg chat_message(const std::string & role, const std::string & content);

}  // namespace harp::cli
