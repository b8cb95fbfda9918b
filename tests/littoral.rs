//! The shipped `littoral` command, built where the tests of this package find it.

fn main() -> std::process::ExitCode {
    littoral_node::main()
}
