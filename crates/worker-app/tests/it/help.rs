//! What `--help` says, and what wrong command lines are told.

use super::echo::Echo;

#[test]
fn help_of_the_program_and_of_each_verb() {
    let echo = Echo::new();
    let mut told = String::new();
    let verbs: [&[&str]; 6] = [&[], &["setup"], &["doctor"], &["status"], &["pause"], &["stop"]];
    for verb in verbs {
        let mut args = verb.to_vec();
        args.push("--help");
        let output = echo.output(&args);
        assert_eq!(output.code, 0);
        told.push_str(&format!("── echo {}\n{}\n", verb.join(" "), output.stdout));
    }
    insta::assert_snapshot!(told);
}

#[test]
fn a_wrong_command_line_is_64_with_one_message_and_a_hint() {
    let echo = Echo::new();
    let mut told = String::new();
    let lines: [&[&str]; 6] = [
        &["paus"],
        &["--devce", "cpu"],
        &["pause", "soon"],
        &["pause", "0s"],
        &["--api-key=abcdefghijklmnopqrstuv"],
        &["--log", "xml"],
    ];
    for args in lines {
        let output = echo.output(args);
        assert_eq!(output.code, 64, "{args:?}");
        assert!(!output.stderr.contains("abcdefghijklmnopqrstuv"));
        told.push_str(&format!(
            "── echo {}\n{}",
            args[0].split('=').next().unwrap(),
            output.stderr
        ));
    }
    insta::assert_snapshot!(told);
}

#[test]
fn completions_name_the_verbs_and_hide_the_engine() {
    let output = Echo::new().output(&["completions", "bash"]);
    assert_eq!(output.code, 0);
    assert!(output.stdout.contains("pause") && output.stdout.contains("doctor"));
}

#[test]
fn version_is_told() {
    assert_eq!(
        Echo::new().output(&["--version"]).stdout,
        format!("echo {}\n", env!("CARGO_PKG_VERSION"))
    );
}
