//! llama.cpp's grammar language (GBNF) rewritten for the parser that is used here, bounded before anything is built of it.
//!
//! Syntax after llama.cpp's `grammars/README.md`. Every literal becomes single characters, so that the other language's
//! greedy words cannot change what a grammar means.

use std::collections::HashMap;
use std::fmt::Write as _;

/// Longest grammar in bytes.
pub const MAX_BYTES: usize = 64 << 10;
/// Deepest nesting of groups.
const MAX_DEPTH: usize = 32;
/// Largest number in `{m,n}`.
const MAX_REPEAT: u32 = 1_000;
/// Largest product of nested repetitions.
const MAX_PRODUCT: u64 = 20_000;
/// Most rules.
const MAX_RULES: usize = 1_000;

/// The same grammar for llguidance: rules `start` and `r0`, `r1`, ….
///
/// # Errors
/// Says in words where the grammar is wrong or what bound it breaks; never quotes it.
pub fn to_lark(gbnf: &str) -> Result<String, String> {
    if gbnf.len() > MAX_BYTES {
        return Err(format!("it has {} bytes, at most {MAX_BYTES} are read", gbnf.len()));
    }
    let mut reader = Reader {
        text: gbnf.chars().collect(),
        at: 0,
        names: HashMap::new(),
        defined: Vec::new(),
        used: Vec::new(),
    };
    let mut rules = Vec::new();
    reader.blank(true);
    while reader.at < reader.text.len() {
        let name = reader.name()?;
        reader.blank(true);
        reader.expect("::=")?;
        reader.blank(true);
        let (body, _) = reader.alternatives(0, false)?;
        let number = reader.number_of(&name)?;
        if reader.defined.contains(&number) {
            return Err("a rule is defined twice".into());
        }
        reader.defined.push(number);
        rules.push(format!("r{number}: {body}"));
        reader.blank(true);
    }
    let Some(root) = reader.names.get("root").filter(|root| reader.defined.contains(root)) else {
        return Err("it has no rule `root`".into());
    };
    if reader.used.iter().any(|used| !reader.defined.contains(used)) {
        return Err("it uses a rule that it does not define".into());
    }
    Ok(format!("start: r{root}\n{}\n", rules.join("\n")))
}

struct Reader {
    text: Vec<char>,
    at: usize,
    names: HashMap<String, usize>,
    defined: Vec<usize>,
    used: Vec<usize>,
}

impl Reader {
    fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Result<char, String> {
        let c = self.peek().ok_or("it ends in the middle")?;
        self.at += 1;
        Ok(c)
    }

    fn wrong(&self, what: &str) -> String {
        format!("{what} at character {}", self.at)
    }

    /// Skips blanks and comments; line ends too where they mean nothing.
    fn blank(&mut self, lines: bool) {
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' => self.at += 1,
                '\r' | '\n' if lines => self.at += 1,
                '#' => {
                    while self.peek().is_some_and(|c| c != '\n' && c != '\r') {
                        self.at += 1;
                    }
                }
                _ => break,
            }
        }
    }

    fn expect(&mut self, what: &str) -> Result<(), String> {
        for wanted in what.chars() {
            if self.next()? != wanted {
                return Err(self.wrong(&format!("`{what}` is missing")));
            }
        }
        Ok(())
    }

    fn name(&mut self) -> Result<String, String> {
        let start = self.at;
        while self
            .peek()
            .is_some_and(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
        {
            self.at += 1;
        }
        if start == self.at {
            return Err(self.wrong("a name is missing"));
        }
        Ok(self.text[start..self.at].iter().collect())
    }

    fn number_of(&mut self, name: &str) -> Result<usize, String> {
        let next = self.names.len();
        if next >= MAX_RULES && !self.names.contains_key(name) {
            return Err(format!("it has more than {MAX_RULES} rules"));
        }
        Ok(*self.names.entry(name.to_owned()).or_insert(next))
    }

    /// `a b | c`, up to a line end (outside of groups), a closing bracket or the end; and the largest repetition in it.
    fn alternatives(&mut self, depth: usize, is_group: bool) -> Result<(String, u64), String> {
        if depth > MAX_DEPTH {
            return Err(format!("its groups are nested deeper than {MAX_DEPTH}"));
        }
        let (mut out, mut most) = (String::new(), 1);
        loop {
            let (sequence, inner) = self.sequence(depth, is_group)?;
            out.push_str(&sequence);
            most = most.max(inner);
            if self.peek() != Some('|') {
                return Ok((out, most));
            }
            self.at += 1;
            self.blank(true);
            out.push_str(" | ");
        }
    }

    fn sequence(&mut self, depth: usize, is_group: bool) -> Result<(String, u64), String> {
        let (mut out, mut most) = (String::new(), 1);
        loop {
            self.blank(is_group);
            let item = match self.peek() {
                None | Some('|' | ')' | '\r' | '\n') => break,
                Some('"') => (self.literal()?, 1),
                Some('[') => (self.class()?, 1),
                Some('.') => {
                    self.at += 1;
                    ("/(?s:.)/".to_owned(), 1)
                }
                Some('(') => {
                    self.at += 1;
                    self.blank(true);
                    let (inner, product) = self.alternatives(depth + 1, true)?;
                    self.expect(")")?;
                    (format!("({inner})"), product)
                }
                Some(_) => {
                    let name = self.name()?;
                    let number = self.number_of(&name)?;
                    self.used.push(number);
                    (format!("r{number}"), 1)
                }
            };
            let (text, product) = self.repeated(item)?;
            most = most.max(product);
            if !out.is_empty() && !text.is_empty() {
                out.push(' ');
            }
            out.push_str(&text);
        }
        if out.is_empty() {
            out.push_str("\"\"");
        }
        Ok((out, most))
    }

    /// `*`, `+`, `?`, `{m}`, `{m,}`, `{m,n}` behind an item.
    fn repeated(&mut self, (item, product): (String, u64)) -> Result<(String, u64), String> {
        let (suffix, times) = match self.peek() {
            Some(c @ ('*' | '+' | '?')) => {
                self.at += 1;
                (c.to_string(), 1)
            }
            Some('{') => {
                self.at += 1;
                let low = self.count()?.ok_or_else(|| self.wrong("a number is missing"))?;
                let high = if self.peek() == Some(',') {
                    self.at += 1;
                    self.count()?
                } else {
                    Some(low)
                };
                self.expect("}")?;
                if high.is_some_and(|high| high < low) {
                    return Err(self.wrong("a repetition ends before it begins"));
                }
                let suffix = match high {
                    Some(high) => format!("{{{low},{high}}}"),
                    None => format!("{{{low},}}"),
                };
                (suffix, u64::from(high.unwrap_or(low).max(1)))
            }
            _ => return Ok((item, product)),
        };
        if item.is_empty() {
            return Ok((item, product));
        }
        let product = product.saturating_mul(times);
        if product > MAX_PRODUCT {
            return Err(format!("its repetitions come to more than {MAX_PRODUCT}"));
        }
        let is_single = !item.contains(' ');
        Ok((
            if is_single {
                format!("{item}{suffix}")
            } else {
                format!("({item}){suffix}")
            },
            product,
        ))
    }

    fn count(&mut self) -> Result<Option<u32>, String> {
        let start = self.at;
        while self.peek().is_some_and(|c| c.is_ascii_digit()) {
            self.at += 1;
        }
        if start == self.at {
            return Ok(None);
        }
        let digits: String = self.text[start..self.at].iter().collect();
        match digits.parse::<u32>() {
            Ok(count) if count <= MAX_REPEAT => Ok(Some(count)),
            _ => Err(format!("something is repeated more than {MAX_REPEAT} times")),
        }
    }

    fn literal(&mut self) -> Result<String, String> {
        self.at += 1;
        let mut characters = Vec::new();
        while self.peek() != Some('"') {
            let c = self.character()?;
            characters.push(format!("/{}/", escaped(c)));
        }
        self.at += 1;
        Ok(if characters.len() > 1 {
            format!("({})", characters.join(" "))
        } else {
            characters.concat()
        })
    }

    fn class(&mut self) -> Result<String, String> {
        self.at += 1;
        let mut out = String::from("/[");
        if self.peek() == Some('^') {
            self.at += 1;
            out.push('^');
        }
        let mut is_empty = true;
        while self.peek() != Some(']') {
            let from = self.character()?;
            out.push_str(&escaped(from));
            is_empty = false;
            if self.peek() == Some('-') && self.text.get(self.at + 1).is_some_and(|c| *c != ']') {
                self.at += 1;
                let to = self.character()?;
                if to < from {
                    return Err(self.wrong("a range of characters ends before it begins"));
                }
                let _ = write!(out, "-{}", escaped(to));
            }
        }
        self.at += 1;
        if is_empty {
            return Err(self.wrong("a class of characters is empty"));
        }
        out.push_str("]/");
        Ok(out)
    }

    /// One character, `\n`, `\x41`, `\u20ac`, `\U0001f600` and the like included.
    fn character(&mut self) -> Result<char, String> {
        match self.next()? {
            '\\' => match self.next()? {
                'n' => Ok('\n'),
                'r' => Ok('\r'),
                't' => Ok('\t'),
                'x' => self.hexadecimal(2),
                'u' => self.hexadecimal(4),
                'U' => self.hexadecimal(8),
                c @ ('\\' | '"' | '[' | ']' | '^' | '-' | '/' | '.' | '\'') => Ok(c),
                _ => Err(self.wrong("an escape is unknown")),
            },
            c => Ok(c),
        }
    }

    fn hexadecimal(&mut self, digits: usize) -> Result<char, String> {
        let mut value = 0u32;
        for _ in 0..digits {
            let digit = self
                .next()?
                .to_digit(16)
                .ok_or_else(|| self.wrong("a digit is missing"))?;
            value = value.wrapping_mul(16).wrapping_add(digit);
        }
        char::from_u32(value).ok_or_else(|| self.wrong("a number is no character"))
    }
}

/// A character for a regular expression between slashes.
fn escaped(c: char) -> String {
    if c.is_ascii_alphanumeric() {
        c.to_string()
    } else {
        format!("\\x{{{:x}}}", u32::from(c))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_the_language_is_rewritten() {
        let check = |gbnf: &str, lark: &str| assert_eq!(to_lark(gbnf).as_deref(), Ok(lark), "{gbnf}");
        check("root ::= \"ab\"", "start: r0\nr0: (/a/ /b/)\n");
        check(
            "root ::= [a-z]+ x? # words\nx ::= \"\" | [^0-9\\n]",
            "start: r1\nr1: /[a-z]/+ r0?\nr0: \"\" | /[^0-9\\x{a}]/\n",
        );
        check("root ::= (\"a\" |\n  .){2,}", "start: r0\nr0: ((/a/ | /(?s:.)/)){2,}\n");
        check(
            "root ::= \"\\x41\\u20ac\"{2}",
            "start: r0\nr0: ((/A/ /\\x{20ac}/)){2,2}\n",
        );
    }

    #[test]
    fn bombs_and_broken_grammars_are_refused_in_words() {
        let check = |gbnf: &str, words: &str| {
            let why = to_lark(gbnf).expect_err(gbnf);
            assert!(why.contains(words), "{why}");
        };
        check("", "no rule `root`");
        check("x ::= \"a\"", "no rule `root`");
        check("root ::= x", "does not define");
        check("root ::= \"a\"\nroot ::= \"b\"", "twice");
        check("root ::= \"a", "ends in the middle");
        check("root ::= [a", "ends in the middle");
        check("root ::= (\"a\"", "ends in the middle");
        check("root ::= \"a\"{99999}", "more than 1000");
        check("root ::= ((\"a\"{900}){900}){900}", "repetitions come to");
        check("root ::= \"a\"{3,2}", "before it begins");
        check("root ::= [z-a]", "before it begins");
        check("root ::= []", "class of characters is empty");
        check("root ::= \"\\ud800\"", "no character");
        check("root = \"a\"", "`::=` is missing");
        check(
            &format!("root ::= {}\"a\"{}", "(".repeat(5_000), ")".repeat(5_000)),
            "nested deeper",
        );
        check(&"x".repeat(70_000), "at most 65536");
        let many: String = (0..2_000).map(|n| format!("r{n} ::= \"a\"\n")).collect();
        check(&many, "more than 1000 rules");
    }
}
