#!/usr/bin/env bash
# What cluster/gpu.yaml needs once in an AWS account: a security group that lets one range of addresses in by ssh, a
# launch template that names it, roles with no more rights than they use, a private bucket. Run again, it changes the
# range and the image and keeps the rest. It uses the `aws` command line and your credentials; it costs nothing.
#   cluster/aws_setup.sh RANGE BUCKET        cluster/aws_setup.sh 198.51.100.7/32 rllib-hpo-results-of-our-lab
set -euo pipefail
cd "$(dirname "$0")"

[[ $# == 2 ]] || { sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; }
range=$1 bucket=$2 name=rllib-hpo
export AWS_DEFAULT_REGION=us-west-2 AWS_PAGER=""  # the region of gpu.yaml
if [[ ! $range =~ ^[0-9.]+/([0-9]+)$ ]] || ((BASH_REMATCH[1] < 16)); then
    echo "error: $range must be a range of IPv4 addresses no wider than /16, as 198.51.100.7/32 for one" >&2
    exit 2
fi
# The roles' policies reach buckets of this name only.
[[ $bucket == rllib-hpo-* ]] || { echo "error: the bucket's name must begin with rllib-hpo-" >&2; exit 2; }

vpc=$(aws ec2 describe-vpcs --filters Name=is-default,Values=true --query 'Vpcs[0].VpcId' --output text)
find_group() {
    aws ec2 describe-security-groups --filters "Name=group-name,Values=$name" "Name=vpc-id,Values=$vpc" \
        --query 'SecurityGroups[0].GroupId' --output text
}
group=$(find_group)
if [[ $group == None ]]; then
    aws ec2 create-security-group --group-name "$name" --vpc-id "$vpc" --description "rllib-hpo clusters" >/dev/null
    group=$(find_group)
fi
# The rules are replaced, so that a range of yesterday does not stay open.
rules=$(aws ec2 describe-security-groups --group-ids "$group" --query 'SecurityGroups[0].IpPermissions' --output json)
[[ $rules == "[]" ]] || aws ec2 revoke-security-group-ingress --group-id "$group" --ip-permissions "$rules" >/dev/null
aws ec2 authorize-security-group-ingress --group-id "$group" --ip-permissions \
    "IpProtocol=tcp,FromPort=22,ToPort=22,IpRanges=[{CidrIp=$range,Description=ssh}]" \
    "IpProtocol=-1,UserIdGroupPairs=[{GroupId=$group,Description=between nodes}]" >/dev/null

# The image is resolved now, not at each launch: all nodes run the same one until this script is run again.
image=${AMI:-$(aws ssm get-parameter --query Parameter.Value --output text \
    --name /aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id)}
data="{\"ImageId\": \"$image\", \"SecurityGroupIds\": [\"$group\"]}"
if aws ec2 describe-launch-templates --launch-template-names "$name" >/dev/null 2>&1; then
    version=$(aws ec2 create-launch-template-version --launch-template-name "$name" --launch-template-data "$data" \
        --query LaunchTemplateVersion.VersionNumber --output text)
    aws ec2 modify-launch-template --launch-template-name "$name" --default-version "$version" >/dev/null
else
    aws ec2 create-launch-template --launch-template-name "$name" --launch-template-data "$data" >/dev/null
fi

for role in worker head; do
    aws iam get-role --role-name "$name-$role" >/dev/null 2>&1 ||
        aws iam create-role --role-name "$name-$role" --assume-role-policy-document file://iam/trust-policy.json >/dev/null
    aws iam put-role-policy --role-name "$name-$role" --policy-name results --policy-document file://iam/worker-policy.json
    if ! aws iam get-instance-profile --instance-profile-name "$name-$role" >/dev/null 2>&1; then
        aws iam create-instance-profile --instance-profile-name "$name-$role" >/dev/null
        aws iam add-role-to-instance-profile --instance-profile-name "$name-$role" --role-name "$name-$role"
    fi
done
aws iam put-role-policy --role-name "$name-head" --policy-name workers --policy-document file://iam/head-policy.json

if ! aws s3api head-bucket --bucket "$bucket" >/dev/null 2>&1; then
    aws s3api create-bucket --bucket "$bucket" \
        --create-bucket-configuration "LocationConstraint=$AWS_DEFAULT_REGION" >/dev/null
fi
aws s3api put-public-access-block --bucket "$bucket" --public-access-block-configuration \
    BlockPublicAcls=true,IgnorePublicAcls=true,BlockPublicPolicy=true,RestrictPublicBuckets=true
echo "security group $group lets $range in; launch template $name ($image); s3://$bucket"
