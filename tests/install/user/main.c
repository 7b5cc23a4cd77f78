/* Prints the default threshold, and whether the kernels can be switched off. */
#include <stdio.h>

#include "harp/harp.h"
#include "harp/kernels.h"

int main(void) {
    const struct harp_params params = harp_default_params();
    if (!harp_set_default_params(&params)) return 1;
    printf("threshold %g, kernels %d\n", params.threshold, harp_set_kernels(false));
    return 0;
}
