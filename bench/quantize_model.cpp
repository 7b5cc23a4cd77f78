// Quantises a GGUF model for measurements: llama.cpp's quantiser with three arguments.
#include <cstdio>
#include <map>
#include <string>

#include "llama.h"

int main(int argc, char ** argv) {
    const std::map<std::string, llama_ftype> types = {
        {"Q4_0", LLAMA_FTYPE_MOSTLY_Q4_0},     {"Q4_1", LLAMA_FTYPE_MOSTLY_Q4_1},
        {"Q8_0", LLAMA_FTYPE_MOSTLY_Q8_0},     {"Q4_K", LLAMA_FTYPE_MOSTLY_Q4_K_M},
        {"Q5_K", LLAMA_FTYPE_MOSTLY_Q5_K_M},   {"Q6_K", LLAMA_FTYPE_MOSTLY_Q6_K},
        {"F16", LLAMA_FTYPE_MOSTLY_F16},       {"IQ4_NL", LLAMA_FTYPE_MOSTLY_IQ4_NL},
        {"IQ4_XS", LLAMA_FTYPE_MOSTLY_IQ4_XS}, {"MXFP4", LLAMA_FTYPE_MOSTLY_MXFP4_MOE},
    };
    const auto type = argc == 4 ? types.find(argv[3]) : types.end();
    if (type == types.end()) {
        std::fprintf(
            stderr,
            "usage: quantize_model INPUT.gguf OUTPUT.gguf Q4_0|Q4_1|Q8_0|Q4_K|Q5_K|Q6_K|IQ4_NL|IQ4_XS|MXFP4|F16\n"
            "MXFP4: only a mixture's experts; the rest becomes Q8_0\n");
        return 2;
    }
    llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype = type->second;
    if (llama_model_quantize(argv[1], argv[2], &params) != 0) {
        std::fprintf(stderr, "quantize_model: '%s' could not be quantised (see above)\n", argv[1]);
        return 1;
    }
    return 0;
}
