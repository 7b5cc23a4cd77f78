// The subcommands of harp. Each takes its own argv (argv[0] is the subcommand's name) and returns the exit code.
#pragma once

namespace harp::cli {

int bench_command(int argc, char ** argv);
int generate_command(int argc, char ** argv);
int chat_command(int argc, char ** argv);
int compare_command(int argc, char ** argv);
int score_command(int argc, char ** argv);
int calibrate_command(int argc, char ** argv);
int info_command(int argc, char ** argv);
int verify_command(int argc, char ** argv);

}  // namespace harp::cli
