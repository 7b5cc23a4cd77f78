#include "commands.h"
namespace harp::cli { int verify_command(int, char **) { return 2; } }
