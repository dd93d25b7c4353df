#!/usr/bin/env bash
# What cluster/gpu_gcp.yaml needs once in a Google Cloud project: a network whose firewall lets one range of addresses
# in by ssh and its own nodes talk, a private bucket. Run again, it changes the range and keeps the rest, and it writes
# the project into gpu_gcp.yaml. It uses the `gcloud` command line and your credentials; it costs nothing.
#   cluster/gcp_setup.sh PROJECT RANGE BUCKET        cluster/gcp_setup.sh our-lab 198.51.100.7/32 rllib-hpo-results
set -euo pipefail
cd "$(dirname "$0")"

[[ $# == 3 ]] || { sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; }
project=$1 range=$2 bucket=$3 name=rllib-hpo region=us-central1  # the region of gpu_gcp.yaml
if [[ ! $range =~ ^[0-9.]+/([0-9]+)$ ]] || ((BASH_REMATCH[1] < 16)); then
    echo "error: $range must be a range of IPv4 addresses no wider than /16, as 198.51.100.7/32 for one" >&2
    exit 2
fi
gcloud() { command gcloud --quiet --project "$project" "$@"; }

gcloud services enable compute.googleapis.com iam.googleapis.com cloudresourcemanager.googleapis.com storage.googleapis.com
gcloud compute networks describe "$name" >/dev/null 2>&1 ||
    gcloud compute networks create "$name" --subnet-mode custom
gcloud compute networks subnets describe "$name" --region "$region" >/dev/null 2>&1 ||
    gcloud compute networks subnets create "$name" --network "$name" --region "$region" --range 10.60.0.0/24
gcloud compute firewall-rules describe "$name-nodes" >/dev/null 2>&1 ||
    gcloud compute firewall-rules create "$name-nodes" --network "$name" --source-ranges 10.60.0.0/24 --allow tcp,udp,icmp
# Made anew, so that a range of yesterday does not stay open.
! gcloud compute firewall-rules describe "$name-ssh" >/dev/null 2>&1 ||
    gcloud compute firewall-rules delete "$name-ssh"
gcloud compute firewall-rules create "$name-ssh" --network "$name" --source-ranges "$range" --allow tcp:22
gcloud storage buckets describe "gs://$bucket" >/dev/null 2>&1 ||
    gcloud storage buckets create "gs://$bucket" --location "$region" \
        --uniform-bucket-level-access --public-access-prevention
sed -i "s/^  project_id: .*/  project_id: $project/" gpu_gcp.yaml
echo "network $name lets $range in; gs://$bucket; gpu_gcp.yaml names the project $project"
