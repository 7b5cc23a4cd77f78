// llama.cpp's simplest generation loop with HARP: calls are renamed, and hesitations are counted.
//
//   simple MODEL.gguf "PROMPT" [N_TOKENS]
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "harp/harp.h"
#include "harp/kernels.h"

int main(int argc, char ** argv) {
    if (argc < 3) {
        std::fprintf(stderr, "usage: %s MODEL.gguf PROMPT [N_TOKENS]\n", argv[0]);
        return 2;
    }
    const std::string prompt = argv[2];
    const int n_tokens = argc > 3 ? std::atoi(argv[3]) : 32;
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);

    harp_set_kernels(true);  // optional: makes quantised models faster
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (model == nullptr) {
        std::fprintf(stderr, "cannot load %s\n", argv[1]);
        return 1;
    }
    const llama_vocab * vocab = llama_model_get_vocab(model);
    std::vector<llama_token> tokens(prompt.size() + 8);
    const int32_t n_prompt = llama_tokenize(vocab, prompt.data(), static_cast<int32_t>(prompt.size()), tokens.data(),
                                            static_cast<int32_t>(tokens.size()), true, true);
    if (n_prompt < 1 || n_tokens < 1) {
        std::fprintf(stderr, "the prompt has no tokens, or none are wanted\n");
        return 2;
    }
    tokens.resize(static_cast<size_t>(n_prompt));

    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<uint32_t>(n_prompt + n_tokens);
    params.n_batch = params.n_ctx;  // the prompt is decoded in one batch
    llama_context * ctx = harp_init_from_model(model, params);
    if (ctx == nullptr) {
        std::fprintf(stderr, "%s\n", harp_last_error());
        return 1;
    }

    std::printf("%s", prompt.c_str());
    llama_batch batch = llama_batch_get_one(tokens.data(), static_cast<int32_t>(tokens.size()));
    int n_hesitations = 0;
    for (int i = 0; i < n_tokens; ++i) {
        if (harp_decode(ctx, batch) != 0) {
            std::fprintf(stderr, "\n%s\n", harp_last_error());
            return 1;
        }
        const float * logits = harp_get_logits_ith(ctx, -1);
        harp_step step{};
        if (harp_get_step(ctx, -1, &step) && step.hesitated) ++n_hesitations;
        llama_token best = 0;
        for (llama_token t = 1; t < llama_vocab_n_tokens(vocab); ++t) {
            if (logits[t] > logits[best]) best = t;
        }
        if (llama_vocab_is_eog(vocab, best)) break;
        char piece[256];
        const int32_t size = llama_token_to_piece(vocab, best, piece, sizeof(piece), 0, true);
        if (size > 0) std::printf("%.*s", size, piece);
        tokens = {best};
        batch = llama_batch_get_one(tokens.data(), 1);
    }
    std::printf("\n[hesitated at %d steps]\n", n_hesitations);
    harp_free(ctx);
    llama_model_free(model);
}
