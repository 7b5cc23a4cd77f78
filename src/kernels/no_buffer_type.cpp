// Instead of buffer_type.cpp where ggml's CPU back end is loaded at run time (GGML_BACKEND_DL): its list of buffer types is out of reach.
#include "harp/kernels.h"

bool harp_set_kernels(bool /*is_enabled*/) {
    return false;
}

bool harp_set_kernel_instructions(const char * /*name*/) {
    return false;
}

const char * harp_kernel_instructions(void) {
    return "none";
}
