//! Text as its reader means it: one alphabet, no weights, and the readings that spelling tricks hide.

use unicode_normalization::UnicodeNormalization as _;
use unicode_normalization::char::is_combining_mark;

use super::emphasis::without_weights;

/// One text read in several ways. More ways only find more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Readings {
    /// Each a list of words; the first takes punctuation as space.
    pub variants: Vec<Vec<String>>,
    /// Words that were spelled letter by letter, each as one string.
    pub spelled: Vec<String>,
    /// Words with signs that stand for i or l, with i for both and for l itself.
    pub either: Vec<String>,
    /// The words between commas, brackets and the like.
    pub clauses: Vec<Vec<String>>,
}

/// Reads a prompt: letters folded, weights and punctuation removed, tricks undone.
pub(super) fn readings(text: &str) -> Readings {
    let clean = |text: &str| without_weights(&joined_thousands(&fold(text)));
    let folded = clean(text);
    let plain = words(&folded);
    // `ch.ild`, `chi(ld)`: punctuation inside a word.
    let closed: Vec<String> = chunks(&folded, |c| c.is_alphanumeric().then_some(c));
    let leet = |one: char, open: Option<char>| -> Vec<String> {
        let chunks = folded.split_whitespace().map(|chunk| {
            // A number by itself stays one: it may be an age.
            if !is_word(chunk) {
                return chunk.chars().filter(|c| c.is_alphanumeric()).collect();
            }
            let letters: String = chunk.chars().filter_map(|c| letter_of(c, one)).collect();
            // Short words in brackets are short words: `(um, …)`.
            let begins = open.filter(|_| chunk.starts_with(['(', '[', '{', '<']) && letters.chars().count() >= 3);
            begins.into_iter().chain(letters.chars()).collect::<String>()
        });
        chunks.filter(|word| !word.is_empty()).collect()
    };
    let squeezed = plain.iter().map(|word| squeeze(word)).collect();
    let mut variants = vec![
        closed,
        squeezed,
        leet('i', None),
        leet('l', None),
        leet('i', Some('c')),
        words(&clean(&camels_apart(text))),
        words(&clean(&turned_back(text))),
    ];
    let with_signs: Vec<String> = spelled_with_signs(&folded).collect();
    let in_letters = |run: &String| run.chars().filter_map(|c| letter_of(c, 'i')).collect::<String>();
    let spelled = spelled(&plain).chain(with_signs.iter().map(in_letters)).collect();
    variants.insert(0, plain);
    let mut seen = Vec::new();
    variants.retain(|variant| {
        let is_new = !seen.contains(variant);
        if is_new {
            seen.push(variant.clone());
        }
        is_new
    });
    let chunks = folded.split_whitespace().map(str::to_owned).chain(with_signs);
    let either = chunks.filter(|chunk| is_word(chunk) && chunk.contains(I_OR_L));
    let either = either.map(|chunk| as_one_letter(&in_letters(&chunk))).collect();
    let clauses = folded.split([',', ';', '|', '\n', '(', ')', '!', '?']).map(words);
    Readings {
        variants,
        spelled,
        either,
        clauses: clauses.filter(|clause| !clause.is_empty()).collect(),
    }
}

/// Signs that stand for i as well as for l.
const I_OR_L: [char; 3] = ['1', '!', '|'];

/// l as i.
pub(super) fn as_one_letter(word: &str) -> String {
    word.replace('l', "i")
}

fn is_word(chunk: &str) -> bool {
    chunk.chars().any(|c| c.is_ascii_alphabetic())
}

/// `NakedCat` as two words.
fn camels_apart(text: &str) -> String {
    let mut apart = String::with_capacity(text.len());
    let mut before = ' ';
    for c in text.chars() {
        if c.is_uppercase() && before.is_lowercase() {
            apart.push(' ');
        }
        apart.push(c);
        before = c;
    }
    apart
}

/// What is shown from right to left by an override, in the order in which it is read.
fn turned_back(text: &str) -> String {
    const OVERRIDE: char = '\u{202e}';
    const END: char = '\u{202c}';
    let mut parts = text.split(OVERRIDE);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |mut read, part| {
        let (turned, rest) = part.split_once(END).unwrap_or((part, ""));
        read.extend(turned.chars().rev());
        read.push_str(rest);
        read
    })
}

/// Lower-case letters of one alphabet: compatibility forms, accents and what cannot be seen are gone, look-alikes are what
/// they look like. Letters that look like nothing in Latin stay.
pub(super) fn fold(text: &str) -> String {
    text.nfkd()
        .filter(|c| !is_combining_mark(*c) || is_kana_mark(*c))
        .filter(|c| !is_invisible(*c))
        .flat_map(char::to_lowercase)
        .nfkd()
        .filter(|c| !is_combining_mark(*c) || is_kana_mark(*c))
        .flat_map(|c| {
            let latin = look_alike(c);
            latin.chars().chain(latin.is_empty().then_some(c))
        })
        .collect()
}

/// Letters and digits as words, all else as space.
pub(super) fn words(folded: &str) -> Vec<String> {
    folded
        .split(|c: char| !c.is_alphanumeric() && !is_kana_mark(c))
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// The marks that make a voiced kana of a plain one are no accents.
fn is_kana_mark(c: char) -> bool {
    matches!(c, '\u{3099}' | '\u{309a}')
}

/// Zero-width, directional, variation and tag characters, soft hyphens.
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'
            | '\u{1160}'
            | '\u{17b4}'
            | '\u{17b5}'
            | '\u{3164}'
            | '\u{ffa0}'
            | '\u{feff}'
    ) || matches!(c, '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{e0000}'..='\u{e0fff}')
        || (c.is_control() && !c.is_whitespace())
}

/// The Latin letters that a lower-case character looks like, the words that a picture stands for, or nothing.
fn look_alike(c: char) -> &'static str {
    match c {
        '👶' => " infant ",
        '🧒' | '🚸' => " child ",
        '👧' => " little girl ",
        '👦' => " little boy ",
        '🔞' => " nsfw ",
        'а' | 'α' | 'ɑ' | 'ᴀ' | 'ⲁ' | 'ꭺ' => "a",
        'в' | 'ʙ' | 'β' | 'ɓ' | 'ⲃ' | 'ꮟ' => "b",
        'с' | 'ϲ' | 'ᴄ' | 'ς' | 'ƈ' | 'ⲥ' | 'ꮯ' => "c",
        'ԁ' | 'đ' | 'ᴅ' | 'ɖ' | 'ɗ' | 'ꭰ' => "d",
        'е' | 'є' | 'ε' | 'ᴇ' | 'ə' | 'ɘ' | 'ɛ' | 'ⲉ' | 'ꭼ' => "e",
        'ƒ' | 'ꜰ' => "f",
        'ɡ' | 'ɢ' | 'ɠ' | 'ց' | 'ꮐ' => "g",
        'һ' | 'н' | 'ħ' | 'ʜ' | 'ɦ' | 'հ' | 'ꮋ' => "h",
        'і' | 'ι' | 'ı' | 'ɪ' | 'ɩ' | 'ɨ' | 'ⲓ' => "i",
        // Read as both.
        'ӏ' => "|",
        'ј' | 'ᴊ' | 'ꭻ' => "j",
        'к' | 'κ' | 'ᴋ' | 'ƙ' | 'ⲕ' | 'ꮶ' => "k",
        'ł' | 'ʟ' | 'ɫ' | 'ɭ' | 'ɬ' | 'ƚ' | 'լ' | 'ꮮ' => "l",
        'м' | 'ᴍ' | 'ɱ' | 'ⲙ' | 'ꮇ' => "m",
        'п' | 'η' | 'ɴ' | 'π' | 'ŋ' | 'ɲ' | 'ɳ' | 'ո' | 'ⲛ' => "n",
        'о' | 'ο' | 'ø' | 'σ' | 'ᴏ' | 'ѳ' | 'ɵ' | 'օ' | 'ⲟ' => "o",
        'р' | 'ρ' | 'ᴘ' | 'ƥ' | 'ⲣ' | 'ꮲ' => "p",
        'ԛ' | 'զ' => "q",
        'г' | 'ʀ' | 'ɾ' | 'ꭱ' => "r",
        'ѕ' | 'ꜱ' | 'ʂ' | 'ꮪ' => "s",
        'т' | 'τ' | 'ŧ' | 'ᴛ' | 'ʈ' | 'ƭ' | 'ⲧ' | 'ꭲ' => "t",
        'υ' | 'μ' | 'ᴜ' | 'ʊ' | 'ս' => "u",
        'ν' | 'ѵ' | 'ᴠ' | 'ʋ' | 'ꮩ' => "v",
        'ѡ' | 'ω' | 'ԝ' | 'ᴡ' | 'ꮃ' => "w",
        'х' | 'χ' | 'ⲭ' => "x",
        'у' | 'γ' | 'ʏ' | 'ⲩ' => "y",
        'ᴢ' | 'ƶ' | 'ʐ' | 'ꮓ' => "z",
        'ß' => "ss",
        'æ' => "ae",
        'œ' => "oe",
        '\u{1f1e6}'..='\u{1f1ff}' => latin(u32::from(c) - 0x1f1e6),
        '\u{1f150}'..='\u{1f169}' => latin(u32::from(c) - 0x1f150),
        '\u{1f170}'..='\u{1f189}' => latin(u32::from(c) - 0x1f170),
        _ => "",
    }
}

fn latin(index: u32) -> &'static str {
    let at = index as usize;
    "abcdefghijklmnopqrstuvwxyz".get(at..at + 1).unwrap_or("")
}

/// The letter that a digit or a sign stands for within a word; letters stay, the rest is nothing.
fn letter_of(c: char, one: char) -> Option<char> {
    match c {
        '0' => Some('o'),
        c if I_OR_L.contains(&c) => Some(one),
        '3' | '€' => Some('e'),
        '4' | '@' => Some('a'),
        '5' | '$' | '§' => Some('s'),
        '¢' => Some('c'),
        '¥' => Some('y'),
        '£' => Some('l'),
        '6' | '9' => Some('g'),
        '7' | '+' => Some('t'),
        '8' => Some('b'),
        '2' => Some('z'),
        c => c.is_alphanumeric().then_some(c),
    }
}

/// `1,000` is one number.
fn joined_thousands(text: &str) -> String {
    let is_digit = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_digit);
    let bytes = text.as_bytes();
    text.char_indices()
        .filter(|(at, c)| {
            let behind = |n: usize| is_digit(bytes.get(at + n));
            let is_separator = *c == ',' && *at > 0 && is_digit(bytes.get(at - 1));
            !(is_separator && behind(1) && behind(2) && behind(3) && !behind(4))
        })
        .map(|(_, c)| c)
        .collect()
}

fn chunks(text: &str, keep: impl Fn(char) -> Option<char>) -> Vec<String> {
    text.split_whitespace()
        .map(|chunk| chunk.chars().filter_map(&keep).collect::<String>())
        .filter(|word| !word.is_empty())
        .collect()
}

/// Runs of at least three single letters, joined; of two in scripts without spaces.
fn spelled(words: &[String]) -> impl Iterator<Item = String> {
    words
        .chunk_by(|a, b| is_letter(a) == is_letter(b))
        .filter(|run| {
            let (letter, least) = run.first().map_or(("", 3), |first| {
                (first.as_str(), if is_without_spaces(first) { 2 } else { 3 })
            });
            run.len() >= least && is_letter(letter)
        })
        .map(|run| run.concat())
}

/// The same with digits and signs for letters, apart by spaces or by punctuation: `o r 4 n g 3`, `o.r.4.n.g.3`.
fn spelled_with_signs(folded: &str) -> impl Iterator<Item = String> {
    let by_space: Vec<&str> = folded.split_whitespace().collect();
    let by_sign: Vec<&str> = folded
        .split(|c: char| !c.is_alphanumeric() && !I_OR_L.contains(&c))
        .filter(|part| !part.is_empty())
        .collect();
    [by_space, by_sign].into_iter().flat_map(|parts| {
        let letters: Vec<Option<char>> = parts.iter().map(|part| alone(part)).collect();
        let runs = letters.chunk_by(|a, b| a.is_some() == b.is_some());
        let run = |run: &[Option<char>]| run.iter().flatten().collect::<String>();
        let has_letters = |run: &[Option<char>]| run.iter().flatten().filter(|c| c.is_alphabetic()).count() >= 2;
        runs.filter(|run| run.len() >= 3 && has_letters(run))
            .map(run)
            .collect::<Vec<_>>()
    })
}

/// The only character of a part, if it has only one.
fn alone(part: &str) -> Option<char> {
    let mut chars = part.chars();
    chars.next().filter(|_| chars.next().is_none())
}

fn is_letter(word: &str) -> bool {
    // A syllable of Hangul is folded into its parts, of which one begins it.
    let is_part = |c: char| matches!(c, '\u{1100}'..='\u{11ff}');
    let n_begun = word.chars().filter(|c| *c < '\u{1160}').count();
    alone(word).is_some_and(char::is_alphabetic) || (n_begun == 1 && word.chars().all(is_part))
}

/// Chinese, Japanese, Korean, Thai: words are not told apart by spaces.
pub(super) fn is_without_spaces(word: &str) -> bool {
    word.chars()
        .any(|c| matches!(c, '\u{0e00}'..='\u{0e7f}' | '\u{1100}'..='\u{11ff}' | '\u{2e80}'..='\u{d7ff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}'))
}

/// Three or more of the same letter become one; digits are left alone.
fn squeeze(word: &str) -> String {
    let letters: Vec<char> = word.chars().collect();
    letters
        .chunk_by(|a, b| a == b)
        .flat_map(|run| {
            let is_drawn_out = run.len() >= 3 && run.iter().all(|c| c.is_alphabetic());
            run.iter().take(if is_drawn_out { 1 } else { run.len() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn finds(text: &str, word: &str) -> bool {
        let readings = readings(text);
        let in_words = readings.variants.iter().flatten().any(|one| one == word);
        in_words || readings.spelled.iter().any(|one| one.contains(word))
    }

    #[test]
    fn a_word_is_found_however_it_is_spelled() {
        let ways = [
            "orange",
            "ORANGE",
            "Orängé",
            "оrаngе",
            "ｏｒａｎｇｅ",
            "𝐨𝐫𝐚𝐧𝐠𝐞",
            "𝓸𝓻𝓪𝓷𝓰𝓮",
            "ⓞⓡⓐⓝⓖⓔ",
            "🅞🅡🅐🅝🅖🅔",
            "ᴏʀᴀɴɢᴇ",
            "օɾɑոցɛ",
            "ⲟꭱⲁⲛꮐⲉ",
            "ɵɾɑɲɠə",
            "o\u{200b}r\u{200b}ange",
            "o\u{ad}range",
            "o\u{301}range",
            "o r a n g e",
            "o.r.a.n.g.e",
            "o-r-a-n-g-e",
            "or.ange",
            "or(an)ge",
            "[o]range",
            "0range",
            "or4nge",
            "0r@ng3",
            "oran6e",
            "oooorange",
            "orannnnge",
            "(orange:1.3)",
            "((orange))",
            "orange:0.8",
            "<lora:orange:1>",
            "a o r a n g e b",
            "orange,apple",
            "*orange*",
            "orange++",
            "{{orange}}",
            "\u{1f1f4}\u{1f1f7}\u{1f1e6}\u{1f1f3}\u{1f1ec}\u{1f1ea}",
        ];
        for way in ways {
            assert!(finds(way, "orange"), "{way:?} {:?}", readings(way));
        }
        for other in ["", "oranges are", "o range", "apple", "12 34", "or ange"] {
            assert!(!finds(other, "orange"), "{other:?}");
        }
    }

    #[test]
    fn letters_like_i_and_l_are_read_as_both() {
        assert!(finds("1emon", "lemon") && finds("k1wi", "kiwi") && finds("!emon", "lemon"));
    }

    #[test]
    fn scripts_without_latin_twins_are_kept() {
        assert_eq!(fold("子供"), "子供");
        assert_eq!(fold("が"), "が".nfkd().collect::<String>());
        assert_ne!(fold("が"), fold("か"));
    }

    proptest! {
        #[test]
        fn any_text_can_be_read(text in "\\PC{0,200}") {
            let readings = readings(&text);
            prop_assert!(readings.variants.iter().flatten().all(|word| !word.is_empty()));
        }

        #[test]
        fn folding_twice_is_folding_once(text in "\\PC{0,80}") {
            let once = fold(&text);
            prop_assert_eq!(fold(&once), once);
        }
    }
}
