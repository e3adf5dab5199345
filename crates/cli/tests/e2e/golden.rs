//! What the command line says, word for word.

#[test]
fn the_command_line_says_what_it_always_said() {
    trycmd::TestCases::new()
        .case("tests/golden/*.toml")
        .case("tests/golden/*.md");
}
