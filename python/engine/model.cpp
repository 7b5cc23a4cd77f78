#include "common.h"
#include "decoding/text.h"
#include "engine.h"
#include "flags/command_line.h"
#include "model/content_hash.h"
#include "model/report.h"

namespace harp::python {

using namespace nb::literals;

std::optional<Options> read_options(const OptionTexts & texts) {
    if (!texts) return std::nullopt;
    Options options;
    for (const auto & [name, text] : *texts) set_option(options, name, text);
    validate(options);
    return options;
}

Model::Model(const std::string & path, const std::vector<std::string> & arguments) : path_(path) {
    refuse_shared_devices();
    const std::lock_guard lock(loading_mutex());
    std::vector<std::string> all = {"harp", "-m", path, "--harp-off"};
    all.insert(all.end(), arguments.begin(), arguments.end());
    std::vector<char *> argv;
    for (std::string & argument : all) argv.push_back(argument.data());
    cli::CommandLine line("python", "", "");
    line.harp.add_to(line.app);
    common_params params;
    if (line.parse(static_cast<int>(argv.size()), argv.data(), params))
        throw Error(ErrorCode::invalid_option, "the flags ask for help or a version, not for a model");
    params.n_ctx = 64;  // llama.cpp's `common` also creates a context, which is not used
    loaded_ = std::make_unique<cli::LoadedModel>(std::move(params), std::nullopt);
}

std::vector<llama_token> Model::tokenize(const std::string & text, bool add_special, bool parse_special) const {
    return common_tokenize(&loaded_->vocab(), text, add_special, parse_special);
}

std::string Model::detokenize(const std::vector<llama_token> & tokens, bool special) const {
    std::string text;
    for (const std::string & piece : decoding::pieces_of_text(loaded_->vocab(), tokens, /*begins_text=*/false, special))
        text += piece;
    return text;
}

void bind_model(nb::module_ & module) {
    using Messages = std::vector<std::pair<std::string, std::string>>;
    nb::class_<Model>(module, "Model")
        .def(nb::init<const std::string &, const std::vector<std::string> &>(), "path"_a, "arguments"_a, WithoutLock())
        .def_prop_ro("path", &Model::path)
        .def_prop_ro("n_vocab", [](const Model & m) { return llama_vocab_n_tokens(&m.loaded().vocab()); })
        .def_prop_ro("n_ctx_train", [](const Model & m) { return llama_model_n_ctx_train(&m.loaded().model()); })
        .def_prop_ro("bos", [](const Model & m) { return llama_vocab_bos(&m.loaded().vocab()); })
        .def_prop_ro("eos", [](const Model & m) { return llama_vocab_eos(&m.loaded().vocab()); })
        .def_prop_ro("adds_bos", [](const Model & m) { return llama_vocab_get_add_bos(&m.loaded().vocab()); })
        .def_prop_ro("has_chat_template", [](const Model & m) { return m.loaded().has_chat_template(); })
        .def_prop_ro("chat_template",
                     [](const Model & m) {
                         const char * text = llama_model_chat_template(&m.loaded().model(), nullptr);
                         return std::string(text != nullptr ? text : "");
                     })
        .def(
            "info", [](const Model & m) { return cli::dump(cli::model_json(m.loaded().model(), m.path())); },
            "JSON: file, description, parameters, bytes, fingerprint", WithoutLock())
        .def("is_end",
             [](const Model & m, llama_token token) { return llama_vocab_is_eog(&m.loaded().vocab(), token); })
        .def("tokenize", &Model::tokenize, "text"_a, "add_special"_a, "parse_special"_a, InPlainLocale())
        .def(
            "tokenize_behind",
            [](const Model & m, const std::vector<llama_token> & context, const std::string & text) {
                return decoding::tokenize_behind(m.loaded().vocab(), context, text);
            },
            "context"_a, "text"_a, InPlainLocale())
        .def(
            "detokenize",
            [](const Model & m, const std::vector<llama_token> & tokens, bool special) {
                const std::string text = m.detokenize(tokens, special);
                return nb::bytes(text.data(), text.size());
            },
            "tokens"_a, "special"_a)
        .def(
            "apply_chat_template",
            [](const Model & m, const Messages & messages) {
                if (!m.loaded().has_chat_template())
                    throw Error(ErrorCode::unsupported_call, "the model has no chat template");
                std::vector<common_chat_msg> chat;
                for (const auto & [role, content] : messages) chat.push_back(cli::chat_message(role, content));
                return m.loaded().apply_chat_template(chat);
            },
            "messages"_a, InPlainLocale());

    module.def(
        "check_options", [](const std::map<std::string, std::string> & texts) { (void)read_options(texts); },
        "texts"_a);
    module.def(
        "option_table",
        [] {
            std::vector<std::vector<std::string>> rows;
            for (const OptionInfo & info : option_table())
                rows.push_back({std::string(info.name), std::string(info.default_value), std::string(info.range),
                                std::string(info.meaning)});
            return rows;
        },
        "name, default, range, meaning of each option");
    module.def("content_hash", &cli::content_hash, "path"_a, "SHA-256 of a file, which is read once", WithoutLock());
    module.def("model_files", &cli::model_files, "path"_a, "of a model: the parts of a split one");
    module.def(
        "build_info", [] { return cli::build_json().dump(); }, "JSON: versions and CPU features");
}

}  // namespace harp::python
