//! The program: arguments in, exit code out. Errors are printed once, here.

use std::process::ExitCode;

fn main() -> ExitCode {
    lockstep::cli::main()
}
