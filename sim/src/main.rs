//! The binary `littoral-sim`.

fn main() -> std::process::ExitCode {
    littoral_sim::main()
}
