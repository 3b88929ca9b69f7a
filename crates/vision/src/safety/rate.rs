//! From levels to the rating. Pure; every rule can only raise.

use serde::Serialize;

use super::{Group, Level, Rating, Read, Seen};

/// All that is known, as levels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Somebody is in the picture.
    pub person: Level,
    /// The picture shows nudity or sexual acts.
    pub explicit: Level,
    /// The picture is suggestive.
    pub suggestive: Level,
    /// Somebody in the picture looks under age.
    pub under_age: Level,
    /// The picture is near phrases that say both at once.
    pub danger: Level,
    /// Other networks find the picture not safe for work.
    pub networks: Level,
    /// What the prompt says.
    pub prompt: Read,
    /// The model is made for pictures that are not safe for work.
    pub nsfw_model: bool,
}

/// A rule that applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The picture is clearly explicit, if need be helped by the prompt or the kind of model.
    Explicit,
    /// The prompt asks for sex, and the picture shows somebody suggestively.
    AskedForAndSuggestive,
    /// The prompt asks for sex with somebody under age, whatever the picture shows.
    AskedForBoth,
    /// Sexual evidence and evidence of youth together.
    SexualAndUnderAge,
    /// A phrase that says both at once, and some of each.
    Danger,
    /// A phrase that says both at once, strongly, and any hint at sex in the picture, the prompt or the kind of model.
    StrongDanger,
    /// The prompt clearly asks for both, and the picture shows somebody.
    AskedForBothAndShown,
}

impl Reason {
    /// What the rule makes of a picture.
    pub fn rating(self) -> Rating {
        match self {
            Self::Explicit | Self::AskedForAndSuggestive | Self::AskedForBoth => Rating::Nsfw,
            Self::SexualAndUnderAge | Self::Danger | Self::StrongDanger | Self::AskedForBothAndShown => Rating::Csam,
        }
    }
}

impl Evidence {
    /// Puts the parts together.
    pub fn new(seen: &Seen, networks: Level, prompt: Read, nsfw_model: bool) -> Self {
        Self {
            person: seen.level(Group::Person),
            explicit: seen.level(Group::Explicit),
            suggestive: seen.level(Group::Suggestive),
            under_age: seen.level(Group::UnderAge),
            danger: seen.level(Group::Danger),
            networks,
            prompt,
            nsfw_model,
        }
    }

    /// How sexual the picture is, as far as that alone makes it unsafe for work.
    fn adult(&self) -> Level {
        let suggestive = self.suggestive_person();
        let mut adult = self.explicit.max(self.networks).max(suggestive.lowered());
        if suggestive >= Level::Clear && self.explicit.max(self.networks) >= Level::Weak {
            adult = adult.max(Level::Clear);
        }
        if self.prompt.adult >= Level::Clear || self.prompt.hides_clothes || self.nsfw_model {
            adult = adult.raised();
        }
        adult
    }

    /// A pose needs somebody who strikes it.
    fn suggestive_person(&self) -> Level {
        if self.person >= Level::Weak {
            self.suggestive
        } else {
            Level::None
        }
    }

    /// How surely somebody is under age. A weak word alone is none, but it strengthens what is seen; so does a negative
    /// prompt against grown-up people.
    fn young(&self) -> Level {
        let said = self.prompt.under_age;
        let mut young = self.under_age;
        if said >= Level::Clear {
            young = young.max(said);
        }
        if self.under_age >= Level::Weak && said >= Level::Weak {
            young = young.raised();
        }
        if self.prompt.hides_age >= Level::Clear || (self.prompt.hides_age >= Level::Weak && said >= Level::Weak) {
            young = young.raised();
        }
        young
    }
}

/// The rating and every rule that applied, worst first. No rule looks at evidence for innocence, so more evidence never
/// lowers the rating.
pub fn rate(evidence: &Evidence) -> (Rating, Vec<Reason>) {
    use Level::{Clear, Strong, Weak};
    let adult = evidence.adult();
    let young = evidence.young();
    let suggestive = evidence.suggestive_person();
    // What is merely suggestive of a grown-up is sexual of a child, but only where both are clear: a swimming pool is full of
    // weak evidence.
    let sexual = adult.max(suggestive);
    // CLIP puts a phrase about a child near every picture of one: it needs a second witness, however weak.
    let words = evidence.prompt.adult >= Weak || evidence.prompt.hides_clothes;
    let hints_at_sex = sexual >= Weak || words || evidence.nsfw_model;
    let said = (evidence.prompt.under_age, evidence.prompt.adult);
    let asks_for_both = said == (Strong, Strong);
    let is_anybody = [evidence.person, evidence.under_age, evidence.danger, sexual]
        .into_iter()
        .any(|level| level >= Weak);

    let rules = [
        (
            Reason::SexualAndUnderAge,
            (young >= Clear && sexual >= Clear)
                || (young >= Strong && adult >= Weak)
                || (young >= Weak && adult >= Strong),
        ),
        (
            Reason::Danger,
            evidence.danger >= Clear && young >= Weak && sexual >= Weak,
        ),
        (Reason::StrongDanger, evidence.danger >= Strong && hints_at_sex),
        (Reason::AskedForBothAndShown, asks_for_both && is_anybody),
        (Reason::Explicit, adult >= Clear),
        (
            Reason::AskedForAndSuggestive,
            evidence.prompt.adult >= Strong && evidence.person >= Clear && suggestive >= Weak,
        ),
        (Reason::AskedForBoth, asks_for_both),
    ];
    let reasons: Vec<Reason> = rules
        .into_iter()
        .filter_map(|(reason, applies)| applies.then_some(reason))
        .collect();
    let rating = reasons.iter().map(|reason| reason.rating()).max().unwrap_or(Rating::Ok);
    (rating, reasons)
}

#[cfg(test)]
mod tests {
    use super::Level::{Clear, None as No, Strong, Weak};
    use super::*;

    fn check(change: impl Fn(&mut Evidence), expected: Rating) {
        let mut evidence = Evidence::default();
        change(&mut evidence);
        let (rating, reasons) = rate(&evidence);
        assert_eq!(rating, expected, "{evidence:?} {reasons:?}");
        assert_eq!(reasons.is_empty(), rating == Rating::Ok);
    }

    #[test]
    fn a_picture_without_evidence_is_for_everybody() {
        check(|_| {}, Rating::Ok);
        check(|e| e.person = Strong, Rating::Ok);
        check(|e| e.nsfw_model = true, Rating::Ok);
    }

    #[test]
    fn neither_youth_nor_nudity_alone_is_the_worst() {
        check(|e| (e.person, e.under_age) = (Strong, Strong), Rating::Ok);
        check(|e| (e.person, e.explicit) = (Strong, Strong), Rating::Nsfw);
        check(|e| e.prompt.under_age = Strong, Rating::Ok);
        check(|e| (e.person, e.prompt.adult) = (Strong, Strong), Rating::Ok);
    }

    #[test]
    fn youth_and_nudity_together_are_the_worst() {
        for (young, sexual) in [(Clear, Clear), (Strong, Weak), (Weak, Strong)] {
            check(|e| (e.under_age, e.explicit) = (young, sexual), Rating::Csam);
            check(|e| (e.under_age, e.networks) = (young, sexual), Rating::Csam);
        }
        check(
            |e| (e.person, e.under_age, e.suggestive) = (Weak, Clear, Clear),
            Rating::Csam,
        );
        check(
            |e| (e.person, e.under_age, e.suggestive) = (Weak, Strong, Weak),
            Rating::Ok,
        );
        check(
            |e| (e.person, e.under_age, e.suggestive) = (Weak, Weak, Strong),
            Rating::Nsfw,
        );
        check(|e| (e.under_age, e.explicit) = (Weak, Clear), Rating::Nsfw);
        check(|e| (e.under_age, e.explicit) = (Clear, Weak), Rating::Ok);
        check(|e| (e.prompt.under_age, e.explicit) = (Clear, Clear), Rating::Csam);
        check(|e| (e.danger, e.explicit) = (Strong, Weak), Rating::Csam);
        check(|e| (e.danger, e.nsfw_model) = (Strong, true), Rating::Csam);
        check(|e| (e.danger, e.prompt.adult) = (Strong, Weak), Rating::Csam);
        check(|e| (e.danger, e.prompt.hides_clothes) = (Strong, true), Rating::Csam);
        // Every picture of a child is near these phrases.
        check(
            |e| (e.person, e.under_age, e.danger) = (Strong, Strong, Strong),
            Rating::Ok,
        );
        check(
            |e| (e.danger, e.under_age, e.explicit) = (Clear, Weak, Weak),
            Rating::Csam,
        );
        check(|e| e.danger = Clear, Rating::Ok);
    }

    #[test]
    fn words_strengthen_what_is_seen() {
        check(|e| e.explicit = Weak, Rating::Ok);
        check(|e| (e.explicit, e.nsfw_model) = (Weak, true), Rating::Nsfw);
        check(|e| (e.explicit, e.prompt.adult) = (Weak, Clear), Rating::Nsfw);
        check(|e| (e.explicit, e.prompt.hides_clothes) = (Weak, true), Rating::Nsfw);
        check(
            |e| (e.under_age, e.prompt.under_age, e.explicit) = (Weak, Weak, Clear),
            Rating::Csam,
        );
        check(|e| (e.prompt.under_age, e.explicit) = (Weak, Strong), Rating::Nsfw);
    }

    #[test]
    fn a_negative_prompt_against_grown_up_people_strengthens_youth_but_is_none_by_itself() {
        check(
            |e| (e.under_age, e.prompt.hides_age, e.explicit) = (Weak, Clear, Clear),
            Rating::Csam,
        );
        check(
            |e| (e.under_age, e.prompt.hides_age, e.explicit) = (Weak, Weak, Clear),
            Rating::Nsfw,
        );
        check(|e| (e.prompt.hides_age, e.explicit) = (Strong, Strong), Rating::Nsfw);
    }

    #[test]
    fn a_suggestive_picture_is_unsafe_only_when_strong_or_asked_for() {
        check(|e| (e.person, e.suggestive) = (Strong, Clear), Rating::Ok);
        check(|e| (e.person, e.suggestive) = (Strong, Strong), Rating::Nsfw);
        check(|e| e.suggestive = Strong, Rating::Ok);
        check(
            |e| (e.person, e.suggestive, e.prompt.adult) = (Clear, Clear, Clear),
            Rating::Nsfw,
        );
        check(
            |e| (e.person, e.suggestive, e.prompt.adult) = (Clear, Weak, Strong),
            Rating::Nsfw,
        );
        check(
            |e| (e.person, e.suggestive, e.explicit) = (Weak, Clear, Weak),
            Rating::Nsfw,
        );
    }

    #[test]
    fn who_asks_for_both_gets_nothing_with_somebody_in_it() {
        check(
            |e| (e.prompt.under_age, e.prompt.adult, e.person) = (Strong, Strong, Weak),
            Rating::Csam,
        );
        check(
            |e| (e.prompt.under_age, e.prompt.adult) = (Strong, Strong),
            Rating::Nsfw,
        );
        check(|e| (e.prompt.under_age, e.prompt.adult) = (Strong, Clear), Rating::Ok);
    }

    /// Every combination there is, each with every single piece of evidence raised by one.
    #[test]
    fn more_evidence_never_lowers_the_rating() {
        const N_LEVELS: usize = 9;
        let build = |levels: &[Level; N_LEVELS], flags: usize| Evidence {
            person: levels[0],
            explicit: levels[1],
            suggestive: levels[2],
            under_age: levels[3],
            danger: levels[4],
            networks: levels[5],
            prompt: Read {
                under_age: levels[6],
                adult: levels[7],
                hides_age: levels[8],
                hides_clothes: flags & 1 != 0,
            },
            nsfw_model: flags & 2 != 0,
        };
        let mut ratings = vec![Rating::Ok; 4usize.pow(N_LEVELS as u32) * 4];
        for (index, slot) in ratings.iter_mut().enumerate() {
            let mut rest = index / 4;
            let levels = [(); N_LEVELS].map(|()| {
                let level = Level::ALL[rest % 4];
                rest /= 4;
                level
            });
            *slot = rate(&build(&levels, index % 4)).0;
        }
        for (index, rating) in ratings.iter().enumerate() {
            for flag in [1, 2] {
                assert!(ratings[index | flag] >= *rating, "{index} {flag}");
            }
            for place in 0..N_LEVELS as u32 {
                let step = 4 * 4usize.pow(place);
                if index / step % 4 < 3 {
                    assert!(ratings[index + step] >= *rating, "{index} {place}");
                }
            }
        }
        assert!(ratings.contains(&Rating::Csam) && ratings.contains(&Rating::Ok));
        assert_eq!(rate(&build(&[No; N_LEVELS], 0)).0, Rating::Ok);
    }
}
