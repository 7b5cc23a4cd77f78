/* Prints the default threshold. */
#include <stdio.h>

#include "harp/harp.h"

int main(void) {
    const struct harp_params params = harp_default_params();
    if (!harp_set_default_params(&params)) return 1;
    printf("threshold %g\n", params.threshold);
    return 0;
}
