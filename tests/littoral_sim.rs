//! The shipped `littoral-sim` command, built where the tests of this package find it.

fn main() -> std::process::ExitCode {
    littoral_sim::main()
}
