// harp-server: llama.cpp's server with a forward pass that hesitates. Parses the flags, sets HARP's defaults, calls the
// server.
#include <unistd.h>

#include <clocale>
#include <csignal>
#include <cstdio>
#include <optional>
#include <vector>

#include "flags/command_line.h"
#include "flags/effective_options.h"
#include "flags/terminal.h"
#include "harp/error.h"
#include "harp/harp.h"
#include "harp/registration.h"
#include "llama.h"
#include "log.h"
#include "server-stream.h"
#include "server/request.h"
#include "server/sockets.h"

int llama_server(common_params & params, int argc, char ** argv);  // in llama.cpp's server.cpp, which has no header

namespace harp::server {
namespace {

/// Until the server has its own handlers there is nothing to be answered.
void end_while_loading(int /*signal*/) {
    _exit(cli::exit_ok);
}

int run(int argc, char ** argv) {
    cli::CommandLine command(
        "serve", "Serves a model over HTTP: llama.cpp's server (OpenAI, Anthropic and its own API), with HARP.",
        "harp serve -m model.gguf --port 8080 --harp-threshold 1.5", LLAMA_EXAMPLE_SERVER);
    command.harp.add_to(command.app);
    common_params params;
    if (const auto code = command.parse(argc, argv, params)) return *code;
    std::signal(SIGINT, end_while_loading);
    std::signal(SIGTERM, end_while_loading);
    std::optional<Options> options = command.harp.options();
    if (params.embedding) options.reset();  // such a server is not for answers
    set_default_options(options, command.harp.n_ctx_twin());
    set_default_negative_prompt(command.harp.negative_prompt());
    command.harp.export_to_environment();  // for the servers that a router starts for its models
    cli::print_err("harp: {}{}\n", cli::options_text(options), params.embedding ? " (embeddings only)" : "");

    std::setlocale(LC_NUMERIC, "C");
    std::signal(SIGPIPE, SIG_IGN);  // a client that hangs up must not end the server
    common_init();
    server_stream_session_manager_start();
    llama_backend_init();
    llama_numa_init(params.numa);
    remove_unused_sockets(params.hostnames);
    std::vector<char *> llama_argv = command.llama_argv();
    const int code = llama_server(params, static_cast<int>(llama_argv.size()), llama_argv.data());
    remove_unused_sockets(params.hostnames);
    common_log_flush(common_log_main());
    if (code != 0 && *harp_last_error() != '\0') cli::print_err("harp serve: {}\n", harp_last_error());
    return code;
}

}  // namespace
}  // namespace harp::server

int main(int argc, char ** argv) {
    try {
        return harp::server::run(argc, argv);
    } catch (const harp::Error & error) {
        harp::cli::print_err("harp serve: {}\n", error.what());
        return harp::cli::exit_code_of(error);
    } catch (const std::exception & error) {
        harp::cli::print_err("harp serve: {}\n", error.what());
        return harp::cli::exit_failure;
    }
}
