//! Recipients of a job whose addresses are none: the others are served, and these are reported with them.

use postrider_schemas::Job;

use super::outcome::{Answer, Class, EnhancedCode, RecipientRefusal, Refusal, Stage};

/// The envelope indices of a job's rejected recipients, of those that are still to be told of.
pub fn indices(job: &Job, pending: Option<&[u8]>) -> impl Iterator<Item = u8> {
    let first = job.recipients().len();
    let all = (first..first + job.rejected().len()).filter_map(|index| u8::try_from(index).ok());
    all.filter(move |index| pending.is_none_or(|pending| pending.contains(index)))
}

/// Why each of them was not served.
pub fn refusals(job: &Job, pending: Option<&[u8]>) -> Vec<RecipientRefusal> {
    if job.rejected().is_empty() {
        return Vec::new();
    }
    let first = job.recipients().len();
    indices(job, pending)
        .map(usize::from)
        .filter_map(|index| {
            let reason = job.rejected().get(index - first)?.reason.to_string();
            let answer = Answer::new(Stage::RcptTo, None, Some(EnhancedCode(5, 1, 3)), &reason);
            Some(RecipientRefusal { index, refusal: Refusal { class: Class::Recipient, answer, retry_after: None } })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use postrider_schemas::{JobLimits, wire};

    use super::*;

    #[test]
    fn who_cannot_be_served_is_told_of_until_that_was_done() {
        let document = r#"{"id":"0190a5c0-7a10-7c3e-9d51-000000000001","from":"a@shop.example","subject":"s","text":"t",
            "to":["nobody","b@dest.example"],"cc":["c@dest.example",null]}"#;
        let job = wire::decode(document.as_bytes(), None, &JobLimits::DEFAULT).unwrap();
        let told = |pending: Option<&[u8]>| refusals(&job, pending).iter().map(|one| one.index).collect::<Vec<_>>();
        assert_eq!(told(None), [2, 3]);
        assert_eq!(told(Some(&[0, 3])), [3]);
        assert_eq!(told(Some(&[0, 1])), [0_usize; 0]);
        let text = refusals(&job, None)[0].refusal.answer.to_string();
        assert!(text.contains("5.1.3") && text.contains("needs an @"), "{text}");
    }
}
