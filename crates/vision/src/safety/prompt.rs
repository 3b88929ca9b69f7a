//! What a prompt asks for, as levels. Words are found and forgotten; only the levels leave this file.

use serde::Serialize;

use super::Level;
use super::ages::tells_young_age;
use super::emphasis::below_zero;
use super::fold::{Readings, as_one_letter, fold, readings, words};
use super::words::WordLists;

/// How clearly the words speak. Says nothing of which words they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Read {
    /// The prompt asks for somebody under age.
    pub under_age: Level,
    /// The prompt asks for nudity or sex.
    pub adult: Level,
    /// The negative prompt keeps grown-up people away.
    pub hides_age: Level,
    /// The negative prompt keeps clothes away.
    pub hides_clothes: bool,
}

/// Reads a prompt. What follows `###` in it counts as negative, as on the Horde; what has a weight below zero counts on the
/// other side as well.
pub fn read(prompt: &str, negative: &str) -> Read {
    let lists = WordLists::builtin();
    let (wanted, unwanted) = prompt.split_once("###").unwrap_or((prompt, ""));
    let both_ways = |text: &str, turned: [&str; 2]| {
        let turned = turned.map(below_zero).into_iter().flatten();
        readings(&turned.fold(text.to_owned(), |text, group| text + " , " + group))
    };
    let unwanted_readings = [both_ways(unwanted, [wanted, ""]), readings(negative)];
    let wanted = both_ways(wanted, [unwanted, negative]);
    let wanted = lists.without_names(lists.with_run_together(wanted));
    let unwanted = unwanted_readings;
    let age = if tells_young_age(&wanted, lists) {
        Level::Strong
    } else {
        Level::None
    };
    Read {
        under_age: lists.under_age.strongest(&wanted).max(age),
        adult: lists.adult.strongest(&wanted),
        hides_age: unwanted
            .iter()
            .map(|words| hides_age(words, lists))
            .max()
            .unwrap_or_default(),
        hides_clothes: unwanted
            .iter()
            .any(|words| lists.clothes.strongest(words) > Level::None),
    }
}

/// Whether a text has one of these words, by itself or within another, also through the tricks that are read.
pub fn mentions(text: &str, listed: &[String]) -> bool {
    if listed.is_empty() {
        return false;
    }
    let lower = text.to_lowercase();
    let readings = readings(text);
    let joined: Vec<String> = readings.variants.iter().map(|variant| variant.join(" ")).collect();
    listed.iter().any(|word| {
        let folded = words(&fold(word));
        let (spaced, run) = (folded.join(" "), folded.concat());
        lower.contains(&word.to_lowercase())
            || (!spaced.is_empty()
                && (joined.iter().any(|text| text.contains(&spaced))
                    || readings.spelled.iter().any(|spelled| spelled.contains(&run))
                    || readings
                        .either
                        .iter()
                        .any(|either| either.contains(&as_one_letter(&run)))))
    })
}

fn hides_age(unwanted: &Readings, lists: &WordLists) -> Level {
    let levels = unwanted.variants.iter().flat_map(|words| {
        (0..words.len()).map(|at| {
            let (level, len) = lists.maturity.at(words, at);
            // Who wants no `adult content` hides nobody's age.
            match words.get(at + len) {
                Some(next) if lists.about_content.contains(next) => Level::None,
                _ => level,
            }
        })
    });
    levels.max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Level::{Clear, None as No, Strong, Weak};
    use super::*;

    fn age(prompt: &str, expected: Level) {
        assert_eq!(read(prompt, "").under_age, expected, "{prompt}");
    }

    #[test]
    fn ages_in_numbers_and_words_are_read() {
        for said in [
            "8 years old",
            "8 year old",
            "8-year-old",
            "8yo",
            "8 yo",
            "8 y.o.",
            "8y/o",
            "8yr old",
            "(8 years old:1.4)",
            "eight years old",
            "eight-year-old",
            "aged 8",
            "age 8",
            "age: 8",
            "age of 8",
            "age:8",
            "aged eight",
            "ages 8",
            "turning 8",
            "17yo",
            "0 years old",
            "8歳の人",
            "8 岁",
            "８ ｙｅａｒｓ ｏｌｄ",
            "8 year\u{200b}s old",
            "6 months old",
            "10 ans",
            "10 años",
            "10 лет",
            "8 jährig",
            "8 years of age",
            "8 y3ars old",
            "8 y3ar5 0ld",
            "@ge 8",
        ] {
            age(said, Strong);
        }
        for other in [
            "18 years old",
            "18yo",
            "25 year old",
            "aged 40",
            "1girl",
            "3 cats",
            "12 monkeys",
            "at 8 o'clock",
            "f/1.8",
            "800 years old",
            "1000 years old",
            "1,000 years old",
            "111 years old",
            "99999999999999999999 years old",
            "4k",
            "8k resolution",
            "",
            "years old",
            "1 year",
            "a painting of 17 trees",
        ] {
            age(other, No);
        }
    }

    #[test]
    fn words_for_age_have_their_level() {
        age("a child in a park", Strong);
        age("c h i l d", Strong);
        age("ch1ldren", Strong);
        for cut in [
            "c hild",
            "chil d",
            "ch i ld",
            "k i d",
            "k.i.d",
            "👧🏽",
            "a 🧒 in a park",
            "ꮯհɩլɗ",
            "ⅽհіⅼԁ",
        ] {
            age(cut, Strong);
        }
        age("he saw a kidney, she is at ten", No);
        age("сhild", Strong);
        age("<lora:child_v2:0.8>", Strong);
        age("a teen", Clear);
        age("a school uniform", Weak);
        // It is a colour and a pet name too; a real one is seen.
        age("a baby blue dress", Weak);
        age("a young woman in a city", No);
        age("a man and a woman", No);
        age("a ship on the sea ### child", No);
    }

    #[test]
    fn a_word_is_read_through_every_trick_and_their_mixtures() {
        for trick in [
            "chiild",
            "cchild",
            "chilldd",
            "CHIILLDD",
            "ch\u{200d}ild",
            "c\u{200b}h\u{2060}i\u{feff}ld",
            "\u{202e}dlihc",
            "a \u{202e}dlihc\u{202c} here",
            "ch\u{202e}\u{202c}ild",
            "ch1|d",
            "ch!1d",
            "c#h#i#l#d",
            "(h1ld",
            "¢hild",
            "c̶h̶i̶l̶d̶",
            "c͓̽h͓̽i͓̽l͓̽d͓̽",
            "с һ і ӏ ԁ",
            "с.һ.і.ӏ.ԁ",
            "ｃ ｈ ｉ ｌ ｄ",
            "c.h.i.l.d",
            "c·h·i·l·d",
            "c_h_i_l_d",
            "c-h-i-l-d",
            "c/h/i/l/d",
            "c—h—i—l—d",
            "c . h . i . l . d",
            "c h 1 l d",
            "c.h.1.l.d",
            "c h i ld",
            "ch i l d",
            "c h il d",
            "NakedChild",
            "ⓒⓗⓘⓛⓓ",
            "🅲🅷🅸🅻🅳",
            "ᴄʜɪʟᴅ",
            "ⓒ ⓗ ⓘ ⓛ ⓓ",
            "c\u{301}h\u{301}1\u{301}l\u{301}d\u{301}",
            "toddller",
            "t0ddl3r",
            "k1ddi3",
            "幼\u{200b}女",
            "幼 女",
            "ロ リ",
            "ﾛﾘ",
            "р е б е н о к",
            "ребeнок",
            "р.е.б.е.н.о.к",
            "E N F A N T",
            "enffant",
            "mineuure",
            "n i ñ a",
            "bambiina",
            "어 린 이",
            "小 学 生",
            "ＬＯＬＩ",
            "l0li",
            "|oli",
            "lolii",
        ] {
            age(trick, Strong);
        }
        let adult = |text: &str| read(text, "").adult;
        for trick in [
            "nakked",
            "n a k e d",
            "n.4.k.3.d",
            "nu\u{200b}de",
            "\u{202e}edun",
            "nuddee",
            "t0p1ess",
            "topl3ss",
            "ñaked",
            "n а k е d",
        ] {
            assert!(adult(trick) >= Clear, "{trick}");
        }
    }

    #[test]
    fn ordinary_words_stay_ordinary_however_they_are_folded() {
        for text in [
            "goods",
            "a good book",
            "balloons",
            "bare feet",
            "books and trees at noon",
            "a school of fish",
            "ten oxen",
            "childish gambino live",
            "Childish Gambino",
            "Destiny's Child, 1999",
            "Billy the Kid, wanted poster",
            "kidney beans",
            "a goat kidded",
            "skidding car",
            "lolly",
            "lollipop",
            "Rothschild",
            "fairchild",
            "brainchild of an engineer",
            "manchild album cover",
            "chill, chilled, chili",
            "the wild west",
            "build, guild, gild",
            "tenth floor",
            "a tent",
            "I am 1 of 2",
            "M 1 1 tank, B 5 2",
            "1 l of milk",
            "F1 11",
            "cch",
            "an ill owl",
            "l i g h t",
            "c h i l l",
            "iPhone",
            "McDonald",
            "MacBook",
            "R.E.M. live",
            "U.S.A.",
            "it, is, so",
            "room 101!",
            "(hill)",
            "[old house]",
            "a kiddush cup",
        ] {
            assert_eq!(read(text, "").under_age, No, "{text}");
        }
        for text in [
            "goods",
            "the annals of history",
            "annus mirabilis",
            "rapping on stage",
            "a rapper",
            "a penny",
            "coming home",
            "pens",
            "Moby Dick",
            "Sex Pistols on stage",
            "magna cum laude",
            "a sperm whale",
            "canal",
            "analog, analysis",
            "assassin",
            "class, glass, grass",
            "titan",
            "peacock",
            "cockatoo",
            "Scunthorpe",
            "nodded",
            "mode, node, nudge",
            "organism",
            "therapist",
            "grape, drape, scrape",
            "document",
            "(um, well)",
            "shuttle",
            "Dickens",
        ] {
            assert_eq!(read(text, "").adult, No, "{text}");
        }
        // A name takes nothing from what stands beside it.
        age("Childish Gambino and a child", Strong);
        age("childish, gambino child", Strong);
    }

    #[test]
    fn words_for_nudity_have_their_level() {
        let check = |prompt: &str, expected| assert_eq!(read(prompt, "").adult, expected, "{prompt}");
        check("explicit sex", Strong);
        check("n.s.f.w", Strong);
        check("nuuuude", Clear);
        check("n4ked", Clear);
        check("a bikini", Weak);
        check("Essex and Sussex, a sextant, a class, the pen is red", No);
        check("a landscape ### nsfw, nude", No);
    }

    #[test]
    fn a_negative_prompt_against_grown_ups_is_suspicious_wherever_it_stands() {
        let check = |prompt: &str, negative: &str, expected| {
            assert_eq!(read(prompt, negative).hides_age, expected, "{prompt} {negative}");
        };
        check("x ### adult, mature", "", Clear);
        check("x", "(mature female:1.3)", Clear);
        check("x###old", "", Weak);
        check("x ### adult content, mature themes", "", No);
        check("x ### adult content, adult", "", Clear);
        check("an adult", "", No);
        check("x ### blurry, low quality", "bad hands", No);
        check("x ### y ### grown-up", "", Clear);
        assert!(read("x ### clothes", "").hides_clothes);
        assert!(read("x", "fully clothed").hides_clothes);
        // A weight below zero turns what it stands at around.
        check("x, (adult:-1.3)", "", Clear);
        check("x, (big, (adult : -.5) man:1.2)", "", Clear);
        check("x, (adult:1.3)", "", No);
        assert!(read("x, (clothes:-1)", "").hides_clothes);
        assert_eq!(read("x ### (a child:-1.2)", "").under_age, Strong);
        assert_eq!(read("x", "((child):-1e0)").under_age, Strong);
        assert_eq!(read("x ### (a child:1.2)", "").under_age, No);
        // Who wants no underwear wants no nudity, as a rule.
        assert!(!read("x", "nsfw, nude, underwear").hides_clothes);
        assert!(!read("clothes ### blurry", "").hides_clothes);
    }

    #[test]
    fn a_hundred_thousand_letters_are_read_in_no_time() {
        let begin = std::time::Instant::now();
        for text in [
            "a ".repeat(50_000),
            "8 ".repeat(50_000),
            "(".repeat(100_000),
            ":1".repeat(50_000),
            format!("{}child{}", "(".repeat(25_000), ":-1)".repeat(25_000)),
            "é".repeat(50_000),
        ] {
            read(&text, &text);
        }
        assert!(
            begin.elapsed() < std::time::Duration::from_secs(10),
            "{:?}",
            begin.elapsed()
        );
    }

    proptest! {
        #[test]
        fn more_words_never_weaken_what_is_read(a in "\\PC{0,60}", b in "[^:\\pC]{0,60}") {
            let alone = read(&a, "");
            prop_assume!(!a.contains("###"));
            // A comma and a word of its own keep the two texts from joining into one word or weight.
            let both = read(&format!("{a} , plum , {b}"), "");
            prop_assert!(both.under_age >= alone.under_age && both.adult >= alone.adult);
        }
    }
}
