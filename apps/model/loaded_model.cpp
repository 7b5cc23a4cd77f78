#include "model/loaded_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <mutex>
#include <random>
#include <utility>

#include "flags/captured_stderr.h"
#include "flags/files.h"
#include "flags/terminal.h"
#include "forward/model_kind.h"
#include "harp/harp.h"
#include "harp/registration.h"
#include "log.h"
#include "model/content_hash.h"
#include "model/gguf_metadata.h"
#include "model/interrupt.h"

namespace harp::cli {

namespace {

/// The first error that llama.cpp logged since the last take(). llama.cpp reports a failure as NULL, without a reason.
class FirstLlamaError {
  public:
    static void callback(ggml_log_level level, const char * text, void * /*unused*/) {
        if (level == GGML_LOG_LEVEL_ERROR) instance().keep(text);
        common_log_default_callback(level, text, nullptr);
    }
    static std::string take() {
        const std::lock_guard lock(instance().mutex_);
        return std::exchange(instance().text_, {});
    }

  private:
    static FirstLlamaError & instance() {
        static FirstLlamaError error;
        return error;
    }
    void keep(std::string text) {
        while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back())) != 0) text.pop_back();
        const std::lock_guard lock(mutex_);
        if (text_.empty()) text_ = std::move(text);
    }
    std::mutex mutex_;
    std::string text_;
};

/// The number of tokens that a model was trained with, from its file; nullopt if the file does not say.
std::optional<uint32_t> trained_context(const std::string & path) {
    const GgufMetadata file(path);
    const auto length = file.uint32(file.text("general.architecture").value_or("") + ".context_length");
    return length == 0U ? std::nullopt : length;
}

std::string one_line(std::string text) {
    std::replace(text.begin(), text.end(), '\n', ' ');
    return text;
}

}  // namespace

void check_model_file(const std::string & what, const std::string & path) {
    std::error_code error;
    if (!std::filesystem::exists(path, error)) {
        throw Error(ErrorCode::invalid_input, fmt::format("{} '{}': no such file", what, path));
    }
    if (std::filesystem::is_directory(path, error)) {
        throw Error(ErrorCode::invalid_input, fmt::format("{} '{}' is a directory; a GGUF file is needed", what, path));
    }
    std::ifstream file(path, std::ios::binary);
    std::array<char, 4> magic{};
    file.read(magic.data(), magic.size());
    if (!file && !file.eof()) throw Error(ErrorCode::io, fmt::format("{} '{}': {}", what, path, std::strerror(errno)));
    if (std::string_view(magic.data(), magic.size()) != "GGUF") {
        throw Error(ErrorCode::invalid_input,
                    fmt::format("{} '{}' is not a GGUF file (it does not begin with the letters GGUF)", what, path));
    }
    const std::vector<std::string> parts = model_files(path);
    for (const std::string & part : parts) {
        if (!std::filesystem::exists(part, error))
            throw Error(ErrorCode::invalid_input,
                        fmt::format("{} '{}': its part '{}' is missing: no such file", what, path, part));
    }
    if (path != parts.front())
        throw Error(ErrorCode::invalid_input, fmt::format("{} '{}' is not the first part of a split model; give '{}'",
                                                          what, path, parts.front()));
}

bool on_load_progress(float part, void * line) {
    static_cast<ProgressLine *>(line)->show(fmt::format("loading the model {:3.0f} %", 100.0F * part));
    return !interrupt_requested;
}

LoadedModel::LoadedModel(common_params params, const std::optional<Options> & options, uint32_t n_ctx_twin)
    : params_(std::move(params)), options_(options) {
    set_default_options(options_, n_ctx_twin);
    check_model_file("model", params_.model.path);
    if (params_.speculative.has_dft()) check_model_file("draft model", params_.speculative.draft.mparams.path);
    for (const auto & vector : params_.control_vectors) check_model_file("control vector", vector.fname);
    // chosen here, so that a run can report it and both sides of a comparison use the same seed
    if (params_.sampling.seed == LLAMA_DEFAULT_SEED) params_.sampling.seed = std::random_device{}();
    llama_log_set(FirstLlamaError::callback, nullptr);
    llama_numa_init(params_.numa);
    ProgressLine progress;
    progress.show("loading the model");
    params_.load_progress_callback = on_load_progress;
    params_.load_progress_callback_user_data = &progress;
    (void)FirstLlamaError::take();
    // llama.cpp would create a sampler too and print errors in the grammar itself; new_sampler() creates ours
    common_grammar grammar = std::exchange(params_.sampling.grammar, {});
    // it would ignore control vectors that do not fit; set_control_vectors() refuses them
    if (const auto vectors = std::exchange(params_.control_vectors, {}); !vectors.empty())
        control_vectors_ = common_control_vector_load(vectors);
    init_ = common_init_from_params(params_);
    params_.load_progress_callback = nullptr;  // a draft model would call it when the progress line is gone
    params_.load_progress_callback_user_data = nullptr;
    params_.sampling.grammar = std::move(grammar);
    progress.clear();
    if (interrupt_requested) throw Error(ErrorCode::aborted, "interrupted while loading the model");
    if (init_->model() == nullptr) {
        throw Error(ErrorCode::invalid_input,
                    fmt::format("model '{}' cannot be loaded: {}", params_.model.path, FirstLlamaError::take()));
    }
    if (init_->context() == nullptr) throw Error(ErrorCode::unsupported_model, no_context_text(harp_last_error()));
    set_control_vectors(init_->context());
    const int32_t n_vocab = llama_vocab_n_tokens(&vocab());
    for (const auto & bias : params_.sampling.logit_bias) {  // llama.cpp would ignore others
        if (bias.token < 0 || bias.token >= n_vocab)
            throw Error(ErrorCode::invalid_option,
                        fmt::format("option '--logit-bias': token {}; allowed: 0..{}", bias.token, n_vocab - 1));
    }
    pass_ = find_pass(init_->context());
    llama_set_abort_callback(init_->context(), abort_if_interrupted, nullptr);
    templates_ = common_chat_templates_init(init_->model(), params_.chat_template);
}

/// Why no context could be made.
std::string LoadedModel::no_context_text(std::string reason) const {
    const std::string logged = FirstLlamaError::take();
    if (!logged.empty()) reason += fmt::format("{}{}", reason.empty() ? "" : ": ", logged);
    return fmt::format("model '{}': {}", params_.model.path, reason);
}

void LoadedModel::check_generates() const {
    const llama_model & model = *init_->model();
    const auto why = forward::why_no_next_token(model);
    if (!why) return;
    throw Error(ErrorCode::unsupported_model,
                fmt::format("model '{}' (architecture {}) does not predict a next token: {}", params_.model.path,
                            forward::architecture(model), *why));
}

void LoadedModel::ContextDeleter::operator()(llama_context * context) const {
    harp_free(context);
}

ForwardPass & LoadedModel::add_pass(const std::optional<Options> & options, uint32_t n_sequences) {
    llama_context_params context_params = common_context_params_to_llama(params_);
    context_params.n_seq_max = n_sequences;
    context_params.kv_unified = context_params.kv_unified || n_sequences > 1;
    (void)FirstLlamaError::take();
    llama_context * context = nullptr;
    try {
        context = init_from_model(*init_->model(), context_params, options);
    } catch (const Error & error) {
        throw Error(error.code(), no_context_text(error.what()));
    }
    extra_contexts_.emplace_back(context);
    adapt(context);
    llama_set_abort_callback(context, abort_if_interrupted, nullptr);
    return *find_pass(context);
}

/// (For the first context common_init_from_params has set the adapters, and loaded them.)
void LoadedModel::adapt(llama_context * context) {
    common_set_adapter_lora(context, params_.lora_adapters);
    set_control_vectors(context);
}

void LoadedModel::set_control_vectors(llama_context * context) {
    if (!control_vectors_) return;
    const auto & [n_embd, data] = *control_vectors_;
    // layers as in common_init_from_params
    const int first = params_.control_vector_layer_start > 0 ? params_.control_vector_layer_start : 1;
    const int last =
        params_.control_vector_layer_end > 0 ? params_.control_vector_layer_end : llama_model_n_layer(&model());
    if (n_embd == -1 || llama_set_adapter_cvec(context, data.data(), data.size(), n_embd, first, last) != 0)
        throw Error(ErrorCode::invalid_option, "option '--control-vector': does not fit this model");
}

decoding::Sampler LoadedModel::new_sampler(const common_params_sampling & sampling) {
    const bool has_grammar = !common_grammar_value(sampling.grammar).empty();
    std::string reason;
    std::optional<CapturedStderr> captured;  // llama.cpp prints what is wrong with a grammar
    if (has_grammar) captured.emplace();
    try {
        return {*init_->model(), sampling};
    } catch (const std::exception & error) {
        reason = error.what();
    }
    throw Error(ErrorCode::invalid_option,
                has_grammar ? fmt::format("option '--grammar': {} ({})", reason, one_line(captured->take()))
                            : fmt::format("the sampler cannot be created: {}", reason));
}

std::vector<llama_token> LoadedModel::tokenize(const std::string & text, bool parse_special) {
    return common_tokenize(&vocab(), text, /*add_special=*/true, parse_special);
}

bool LoadedModel::has_chat_template() const {
    return common_chat_templates_was_explicit(templates_.get());
}

common_chat_msg chat_message(const std::string & role, const std::string & content) {
    common_chat_msg message;
    message.role = role;
    message.content = content;
    return message;
}

std::string LoadedModel::apply_chat_template(const std::vector<common_chat_msg> & messages) const {
    common_chat_templates_inputs inputs;
    inputs.messages = messages;
    inputs.use_jinja = params_.use_jinja;
    inputs.add_generation_prompt = true;
    inputs.enable_thinking = params_.enable_reasoning != 0;
    inputs.chat_template_kwargs = params_.default_template_kwargs;
    try {
        return common_chat_templates_apply(templates_.get(), inputs).prompt;
    } catch (const std::exception & error) {
        throw Error(ErrorCode::invalid_input,
                    fmt::format("the chat template cannot format these messages: {}", one_line(error.what())));
    }
}

nlohmann::json prompt_json(const FormattedPrompt & prompt, size_t n_tokens) {
    return {{"tokens", n_tokens}, {"format", prompt.is_chat ? "chat" : "raw"}};
}

void limit_context(common_params & params) {
    if (params.n_ctx != 0) return;
    check_model_file("model", params.model.path);
    CapturedStderr captured;  // a faulty file is reported when it is loaded
    params.n_ctx = static_cast<int32_t>(std::min(2048U, trained_context(params.model.path).value_or(2048)));
    (void)captured.take();
}

void append_pauses(std::vector<llama_token> & prompt, const llama_vocab & vocab, uint32_t n, const std::string & text) {
    const auto pause = common_tokenize(&vocab, text, /*add_special=*/false, /*parse_special=*/true);
    if (n > 0 && pause.empty())
        throw Error(ErrorCode::invalid_option, fmt::format("option '--pause-text': '{}' has no tokens", text));
    for (uint32_t i = 0; i < n; ++i) prompt.insert(prompt.end(), pause.begin(), pause.end());
}

void refuse_speculation(const common_params & params) {
    if (decoding::asks_for_speculation(params))
        throw Error(ErrorCode::invalid_option, "this command does not speculate; leave out --spec-type and -md");
}

std::string read_prompt(const CommandLine & command_line, const common_params & params) {
    std::string prompt = params.prompt;  // -p, or the text of the file given by -f
    const bool is_given = command_line.has_llama_flag(prompt_flags);
    if (!is_given && !is_terminal(stdin)) {
        prompt.assign(std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>());
        if (!prompt.empty() && prompt.back() == '\n') prompt.pop_back();  // as llama.cpp does with the text of a file
    }
    if (interrupt_requested) throw Error(ErrorCode::aborted, "interrupted while reading the prompt");
    if (const size_t bad = find_invalid_utf8(prompt); bad != std::string::npos) {
        throw Error(ErrorCode::invalid_input, fmt::format("the prompt is not valid UTF-8: byte 0x{:02X} at offset {}",
                                                          static_cast<unsigned char>(prompt[bad]), bad));
    }
    remove_byte_order_mark(prompt);
    // if lines end in CR LF, the CR is left
    if (!prompt.empty() && prompt.back() == '\r') prompt.pop_back();
    if (prompt.find_first_not_of(" \t\r\n") == std::string::npos) {
        throw Error(ErrorCode::invalid_input, "the prompt is empty; give -p TEXT, -f FILE, or text on standard input");
    }
    return prompt;
}

void add_format_flag(CLI::App & app, std::string & format) {
    app.add_option("--format", format,
                   "raw: the prompt as it is; chat: in the model's chat template; auto: chat if it has one")
        ->check(CLI::IsMember({"auto", "raw", "chat"}))
        ->capture_default_str();
}

FormattedPrompt format_prompt(const LoadedModel & loaded, const std::string & prompt, const std::string & format) {
    const bool has_template = loaded.has_chat_template();
    if (format == "raw") return {prompt, false, "raw, as asked"};
    if (format == "chat" && !has_template) {
        throw Error(ErrorCode::invalid_option,
                    "option '--format': chat, but the model has no chat template; use raw or give --chat-template");
    }
    if (!has_template) return {prompt, false, "raw, the model has no chat template"};
    std::vector<common_chat_msg> messages;
    const std::string & system = loaded.params().system_prompt;
    if (!system.empty()) messages.push_back(chat_message("system", system));
    messages.push_back(chat_message("user", prompt));
    return {loaded.apply_chat_template(messages), true,
            format == "chat" ? "chat template, as asked" : "the model's chat template"};
}

std::vector<llama_token> negative_prompt_of(LoadedModel & loaded, const std::string & text, const std::string & format,
                                            size_t n_behind) {
    if (text.empty()) return {};
    const FormattedPrompt prompt = format_prompt(loaded, text, format);
    auto tokens = loaded.tokenize(prompt.text, prompt.is_chat);
    const size_t room = loaded.pass().n_ctx_twin();
    if (tokens.size() + n_behind > room) {
        const char * flag = room < loaded.pass().n_ctx_seq() ? "--harp-n-ctx-twin" : "-c";
        throw Error(ErrorCode::invalid_input,
                    fmt::format("the negative prompt (--harp-negative-prompt) has {} tokens; allowed: 1..{} in a "
                                "context of {} ({})",
                                tokens.size(), room - std::min(room, n_behind), room, flag));
    }
    return tokens;
}

}  // namespace harp::cli
